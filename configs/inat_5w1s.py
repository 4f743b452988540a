"""meta-iNat (iNaturalist 2017), 5-way 1-shot, transductive: as `mini_5w1s.py`, but for the images.

Classes as in Wertheimer & Hariharan (2019); no published figure for MAML is cited here. There is no validation split:
the last checkpoint counts. Not run by us yet.

    python launch.py --config configs/inat_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "inat2017"
    c.train.validate_every = 0
    c.eval.query = 15
    c.eval.steps = 5
    c.eval.checkpoint = "latest"
    return c
