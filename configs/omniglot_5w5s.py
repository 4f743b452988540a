"""Omniglot, 5-way 5-shot, transductive (Finn, Abbeel & Levine 2017, table 1: 99.9 +- 0.1 %).

All but the shots as in `omniglot_5w1s.py`. Not run by us yet.

    python launch.py --config configs/omniglot_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.task.shot = 5
    return c
