"""mini-ImageNet, 5-way 1-shot, inductive: the `template` setting of PyTorch-MAML.

Query images are normalised by statistics of the episode's support images (`episodic`), so each is classified by
itself. Images are normalised, the support flipped at random; the head starts at zero; inner momentum and weight decay;
SGD with steps at epochs 120 and 140 of 150, an epoch being 200 meta-steps. Its author found it about 4 % below the
transductive setting.

    python launch.py --config configs/mini_5w1s_inductive.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("default")
    c.data.name = "mini_imagenet"
    c.data.image_size = 84
    c.data.normalize = "imagenet"
    c.data.support_augment = "flip"
    c.model.norm = "episodic"
    c.model.head = "zero"
    c.inner.momentum = 0.9
    c.inner.weight_decay = 5e-4
    c.outer.optimizer = "sgd"
    c.outer.rate = 0.01
    c.outer.weight_decay = 5e-4
    c.outer.schedule = "step"
    c.outer.milestones = (120 * 200, 140 * 200)
    c.outer.period = 200
    c.train.steps = 150 * 200
    c.train.report_every = 20
    c.train.validate_every = 1000
    c.train.checkpoint_every = 200
    return c
