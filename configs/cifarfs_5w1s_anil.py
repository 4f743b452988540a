"""CIFAR-FS, 5-way 1-shot, ANIL (Raghu et al. 2020, arXiv:1909.09157): only the head adapts.

The paper has no CIFAR-FS. Not run by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_anil.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.fixed = "^encoder"
    return c
