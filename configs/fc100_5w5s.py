"""FC100, 5-way 5-shot, transductive, at 32 px: as `fc100_5w1s.py`, but for the shots. Not run by us yet.

python launch.py --config configs/fc100_5w5s.py --config.data.dir=FOLDER
"""

import ml_collections

from configs import fc100_5w1s


def get_config() -> ml_collections.ConfigDict:
    c = fc100_5w1s.get_config()
    c.task.shot = 5
    return c
