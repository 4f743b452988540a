"""CIFAR-FS, 5-way 1-shot, first-order MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400).

The paper has no CIFAR-FS. Not run by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_fomaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.first_order = True
    return c
