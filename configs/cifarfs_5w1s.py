"""CIFAR-FS, 5-way 1-shot, transductive, at 32 px, as in `mini_5w1s.py`.

Lee et al., 'Meta-Learning with Differentiable Convex Optimization' (2019), table 2, give 58.9 +- 1.9 % for MAML with a
four-layer ConvNet, of protocols of their own; here, 15 query images per class and five inner steps at test. CIFAR-100
is downloaded if there is a network. Not run by us yet.

    python launch.py --config configs/cifarfs_5w1s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.data.name = "cifar_fs"
    c.data.image_size = 32
    c.eval.query = 15
    c.eval.steps = 5
    return c
