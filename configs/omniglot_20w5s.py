"""Omniglot, 20-way 5-shot, transductive (Finn, Abbeel & Levine 2017, table 1: 98.9 +- 0.2 %).

All but the shots as in `omniglot_20w1s.py`. Not run by us yet.

    python launch.py --config configs/omniglot_20w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_20w1s")
    c.task.shot = 5
    return c
