"""Omniglot, 5-way 1-shot, Meta-SGD (Li et al. 2017, arXiv:1707.09835): a learned rate for every element, of any sign.

As in the paper all rates start at one value; it draws this from 0.005 .. 0.1, here it is 0.1. One inner step at test as
in training. Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_metasgd.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.inner.learn_rates = "element"
    c.inner.encoder_rate = 0.1
    c.inner.head_rate = 0.1
    c.eval.steps = 1
    return c
