"""Omniglot, 20-way 1-shot, transductive (Finn, Abbeel & Levine 2017, table 1: 95.8 +- 0.3 %).

As in the paper: five inner steps of rate 0.1 in training and at test, 16 tasks per meta-step; the rest as in
`omniglot_5w1s.py`. Not run to its end by us yet.

    python launch.py --config configs/omniglot_20w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.task.way = 20
    c.inner.steps = 5
    c.inner.encoder_rate = 0.1
    c.inner.head_rate = 0.1
    c.eval.steps = 5
    c.train.steps = 40_000
    c.train.tasks = 16
    return c
