"""Omniglot, 5-way 1-shot, no meta-learning: nearest class mean of the features of a classifier of all base classes.

The baseline that methods have to beat (Chen et al. 2019, arXiv:1904.04232, compare such ones). A step sees four batches
of 64 images. Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_ncm.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.model.head = "prototypes"
    c.inner.steps = 0
    c.eval.steps = 0
    c.train.pretrain = c.train.steps
    c.train.steps = 0
    c.train.tasks = 4
    return c
