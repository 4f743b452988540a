"""Describable Textures, 5-way 1-shot, transductive, split of Meta-Dataset (Triantafillou et al. 2020).

As `mini_5w1s.py`, but for the data: no figure is published for this setting. The archive is downloaded if there is a
network (625 MB). Not run by us.

    python launch.py --config configs/dtd_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "dtd"
    return c
