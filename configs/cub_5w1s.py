"""CUB-200-2011, 5-way 1-shot, transductive, split of 'A Closer Look at Few-shot Classification' (Chen et al. 2019).

Its table 2 gives 54.73 +- 0.97 % for MAML. As there: 84 px, four blocks of 64 channels, five inner steps of rate 0.01
in training and at test, Adam 1e-3, 4 tasks per meta-step, 15 query images per class and 600 tasks at test. Here:
gradients of second order, no augmentation. The archive is downloaded if there is a network (1.1 GB). Not run by us yet.

    python launch.py --config configs/cub_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "cub200"
    c.data.split = "closerlook"
    c.model.encoder = "wide_convnet4"
    c.inner.fixed = ""
    c.eval.query = 15
    c.eval.steps = 5
    return c
