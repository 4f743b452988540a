"""CIFAR-FS, 5-way 1-shot, iMAML (Rajeswaran et al. 2019, arXiv:1909.04630).

λ, steps and rates as for Omniglot in the paper's code; the paper publishes no figure for CIFAR-FS. Not run to its end
by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_imaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.outer.method = "imaml"
    c.inner.proximal = 2.0
    c.inner.steps = 16
    c.eval.steps = 16
    c.inner.encoder_rate = 0.1
    c.inner.head_rate = 0.1
    return c
