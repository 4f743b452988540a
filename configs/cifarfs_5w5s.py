"""CIFAR-FS, 5-way 5-shot, MAML, transductive; published: 71.5 +- 1.0 % (Bertinetto et al. 2019, arXiv:1805.08136).

A rerun of the official code gives 70.8 +- 0.9 %. Five queries per class at test; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.task.shot = 5
    c.eval.query = 5
    return c
