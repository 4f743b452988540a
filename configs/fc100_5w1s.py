"""FC100, 5-way 1-shot, transductive, at 32 px: as `cifarfs_5w1s.py`, but for the split.

Classes are split by superclass (Oreshkin, Rodríguez López and Lacoste, 'TADAM', 2018), which makes it harder. No
published figure for MAML is cited here. Not run by us yet.

    python launch.py --config configs/fc100_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.data.name = "fc100"
    return c
