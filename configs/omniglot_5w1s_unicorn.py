"""Omniglot, 5-way 1-shot, UNICORN-MAML (Ye & Chao 2022, arXiv:2106.16245): one vector starts every class.

So the order of labels says nothing, and any number of ways will do at test. The paper has no figure for this data. Not
run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_unicorn.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.model.head = "shared"
    return c
