"""CIFAR-FS, 5-way 1-shot, TaskNorm-I (Bronskill et al. 2020, arXiv:2003.03284).

Inductive, as in `mini_5w1s_tasknorm.py`, which see. The paper has no CIFAR-FS. Not run by us yet; the rest as in
`cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_tasknorm.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.model.norm = "tasknorm"
    c.inner.fixed = "norm"
    return c
