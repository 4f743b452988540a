"""CIFAR-FS, 5-way 1-shot, FOMAML (Finn, Abbeel & Levine 2017, section 5.2): first-order gradients.

PaddleFSL gives 57.1 %. Not run to its end by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_fomaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.first_order = True
    return c
