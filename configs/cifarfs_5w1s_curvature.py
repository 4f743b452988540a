"""CIFAR-FS, 5-way 1-shot, Meta-Curvature (Park & Oliva 2019, arXiv:1902.03356).

A learned matrix for each mode of every kernel's gradient, the identity at first; no figure for CIFAR-FS is published in
the paper. Not run to its end by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_curvature.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.precondition = "curvature"
    return c
