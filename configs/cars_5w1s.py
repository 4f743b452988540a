"""Stanford Cars, 5-way 1-shot, transductive, split of DN4 (Li et al. 2019).

As `mini_5w1s.py`, but for the data: no figure is published for this setting. Not run by us.

    python launch.py --config configs/cars_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "cars"
    return c
