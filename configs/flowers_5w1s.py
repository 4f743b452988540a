"""VGG Flowers, 5-way 1-shot, transductive, split of Meta-Dataset (Triantafillou et al. 2020).

As `mini_5w1s.py`, but for the data: no figure is published for this setting. The archive is downloaded if there is a
network (345 MB). Not run by us.

    python launch.py --config configs/flowers_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "flowers"
    return c
