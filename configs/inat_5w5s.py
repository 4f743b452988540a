"""meta-iNat (iNaturalist 2017), 5-way 5-shot, transductive: as `inat_5w1s.py`, but for the shots. Not run by us yet.

python launch.py --config configs/inat_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("inat_5w1s")
    c.task.shot = 5
    return c
