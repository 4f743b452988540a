"""CIFAR-FS, 5-way 1-shot, MAML++ (Antoniou, Edwards & Storkey 2018, arXiv:1810.09502).

All its parts, as in `omniglot_5w1s_mamlpp.py`: inductive at test, or with --config.model.norm=per_step_batch as its
public code. The paper has no figure for this data. Not run to its end by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_mamlpp.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.inner.learn_rates = "tensor"
    c.inner.rates_per_step = True
    c.model.norm = "per_step"
    c.outer.multi_step = c.train.get_ref("steps") // 4
    c.outer.first_order = c.train.get_ref("steps") // 4
    c.eval.steps = 5
    return c
