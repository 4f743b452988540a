"""CIFAR-FS, 5-way 1-shot, MAML as Bertinetto et al. (2019, arXiv:1805.08136, table 1) ran it: 58.9 +- 1.9 %.

Five inner steps of 0.01, Adam 1e-3, 60,000 meta-steps of 4 tasks with 15 queries; the rest as in `cifarfs_5w1s.py`. Not
run to its end by us.

    python launch.py --config configs/cifarfs_5w1s_paper.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.encoder_rate = 0.01
    c.inner.head_rate = 0.01
    c.outer.schedule = "constant"
    c.train.steps = 60_000
    c.data.rotations = False
    c.data.support_augment = "none"
    c.data.query_augment = "none"
    return c
