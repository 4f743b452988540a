"""CIFAR-FS, 5-way 1-shot, CAVIA (Zintgraf et al. 2019, arXiv:1810.03642).

Only 100 context parameters adapt, from zero on; they scale and shift the channels of the third block. As in the paper's
code for mini-ImageNet: two inner steps of rate 1. The paper publishes no figure for CIFAR-FS. Not run to its end by us
yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_cavia.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.model.options = "context=100"
    c.inner.fixed = "^(?!encoder/film/context$)"
    c.inner.steps = 2
    c.eval.steps = 2
    c.inner.encoder_rate = 1.0
    return c
