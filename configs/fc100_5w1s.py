"""FC100, 5-way 1-shot, MAML, transductive: CIFAR-100 split by superclass (Oreshkin et al. 2018), which makes it harder.

PaddleFSL gives 37.6 % (first order). The rest as in `cifarfs_5w1s.py`. Not run by us yet.

    python launch.py --config configs/fc100_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.data.name = "fc100"
    return c
