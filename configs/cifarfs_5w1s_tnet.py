"""CIFAR-FS, 5-way 1-shot, T-net (Lee & Choi 2018, arXiv:1801.05558).

A linear layer after each convolution, the identity at first, is meta-learned and does not adapt: it preconditions the
steps of the convolution before it. The paper publishes no figure for CIFAR-FS. Not run to its end by us yet; the rest
as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_tnet.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.model.options = "warp=True"
    c.inner.fixed = "norm|warp$"
    return c
