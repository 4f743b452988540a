"""Omniglot, 5-way 1-shot, Reptile (Nichol, Achiam & Schulman 2018, arXiv:1803.02999, table 2: 97.68 +- 0.04 %).

As in the paper: ten shots in training, Adam without momentum in the inner loop at 0.001, five steps in training and
50 at test, and five tasks per meta-step, by plain SGD whose rate falls from 1.0 to 0. Here the inner steps take all
images at once, where the paper draws ten for each, and the outer rate falls by a cosine. The rest as in
`omniglot_5w1s.py`. Not run to its end by us yet.

    python launch.py --config configs/omniglot_5w1s_reptile.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.task.shot = 10
    c.eval.shot = 1
    c.inner.steps = 5
    c.inner.optimizer = "rmsprop"
    c.inner.epsilon = 1e-3
    c.inner.encoder_rate = 0.001
    c.inner.head_rate = 0.001
    c.eval.steps = 50
    c.outer.method = "reptile"
    c.outer.optimizer = "sgd"
    c.outer.momentum = 0.0
    c.outer.rate = 1.0
    c.outer.clip = 0.0
    c.train.tasks = 5
    return c
