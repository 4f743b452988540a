"""FGVC-Aircraft, 5-way 1-shot, transductive, split of Meta-Dataset (Triantafillou et al. 2020).

As `mini_5w1s.py`, but for the data: no figure is published for this setting. Images cut to their boxes, as there. Not
run by us.

    python launch.py --config configs/aircraft_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "aircraft"
    return c
