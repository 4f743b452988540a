"""tiered-ImageNet, 5-way 1-shot, transductive: the `reproduce` setting of PyTorch-MAML, with 64 channels.

Lee et al., 'Meta-Learning with Differentiable Convex Optimization' (2019), table 1, give 51.67 +- 1.81 % for MAML with
a four-layer ConvNet. Protocol as in `mini_5w1s.py`: one query image per class and ten inner steps at test, 600 tasks.
The images are not ours to give; the README says where they go. Not run by us yet.

    python launch.py --config configs/tiered_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "tiered_imagenet"
    c.model.encoder = "wide_convnet4"
    return c
