"""FC100, 5-way 5-shot, transductive, at 32 px: as `fc100_5w1s.py`, but for the shots. Not run by us yet.

python launch.py --config configs/fc100_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("fc100_5w1s")
    c.task.shot = 5
    return c
