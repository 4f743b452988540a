"""CIFAR-FS, 5-way 1-shot, BOIL (Oh et al. 2021, arXiv:2008.08882): only the body adapts; 58.0 % in the paper.

One inner step of 0.5, in training and at test, and 64 filters, as there. Not run to its end by us yet; the rest as in
`cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_boil.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.fixed = "^head"
    c.inner.steps = 1
    c.inner.encoder_rate = 0.5
    c.inner.head_rate = 0.0
    c.eval.steps = 1
    c.model.width = 64
    return c
