"""CIFAR-FS, 5-way 1-shot, Meta-SGD (Li et al. 2017, arXiv:1707.09835): a learned rate for every element.

Five inner steps, in training and at test. The paper has no figure for this data. Not run to its end by us yet; the rest
as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_metasgd.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.learn_rates = "element"
    c.eval.steps = 5
    return c
