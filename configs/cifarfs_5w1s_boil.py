"""CIFAR-FS, 5-way 1-shot, BOIL (Oh et al. 2021, arXiv:2008.08882): only the body adapts.

The paper has no CIFAR-FS. Not run by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_boil.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.fixed = "^head|norm"
    return c
