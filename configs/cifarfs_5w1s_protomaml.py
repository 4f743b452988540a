"""CIFAR-FS, 5-way 1-shot, Proto-MAML (Triantafillou et al. 2020, arXiv:1903.03096).

The head starts at the class means of the support features and adapts with the rest. The paper has no figure for this
data by itself. Not run to its end by us yet; the rest as in `cifarfs_5w1s.py`.

    python launch.py --config configs/cifarfs_5w1s_protomaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.model.head = "prototypes"
    return c
