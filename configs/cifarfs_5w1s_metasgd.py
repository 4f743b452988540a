"""CIFAR-FS, 5-way 1-shot, Meta-SGD (Li et al. 2017, arXiv:1707.09835).

A learned rate for every element, of any sign, and one inner step. The paper has no CIFAR-FS. Not run by us yet; the
rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_metasgd.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.learn_rates = "element"
    c.inner.steps = 1
    c.eval.steps = 1
    return c
