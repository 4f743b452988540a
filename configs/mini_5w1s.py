"""mini-ImageNet, 5-way 1-shot, transductive: the `reproduce` setting of PyTorch-MAML.

Finn, Abbeel & Levine (2017) report 48.70 +- 1.84 %, a figure that depends on the protocol kept here: one query image
per class, ten inner steps and 600 tasks at test. Images in [0, 1] without augmentation, BatchNorm by batch statistics
and fixed in the inner loop, Adam 1e-3 for 60,000 meta-steps of 4 tasks. The images are not ours to give; the README
says where they go.

    python launch.py --config configs/mini_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("default")
    c.data.name = "mini_imagenet"
    c.data.image_size = 84
    c.inner.fixed = "norm"
    c.eval.query = 1
    c.eval.steps = 10
    c.train.steps = 60_000
    c.train.report_every = 20
    c.train.validate_every = 1000
    c.train.checkpoint_every = 200
    return c
