"""CUB-200-2011, 5-way 5-shot, transductive, split of 'A Closer Look at Few-shot Classification' (Chen et al. 2019).

Its table 2 gives 75.75 +- 0.76 % for MAML. All but the shots and the number of meta-steps as in `cub_5w1s.py`. Not run
by us yet.

    python launch.py --config configs/cub_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cub_5w1s")
    c.task.shot = 5
    c.train.steps = 40_000
    return c
