"""meta-iNat (iNaturalist 2017), 5-way 5-shot, transductive: as `inat_5w1s.py`, but for the shots. Not run by us yet.

python launch.py --config configs/inat_5w5s.py --config.data.dir=FOLDER
"""

import ml_collections

from configs import inat_5w1s


def get_config() -> ml_collections.ConfigDict:
    c = inat_5w1s.get_config()
    c.task.shot = 5
    return c
