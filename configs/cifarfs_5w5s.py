"""CIFAR-FS, 5-way 5-shot, transductive, at 32 px.

Lee et al., 'Meta-Learning with Differentiable Convex Optimization' (2019), table 2, give 71.5 +- 1.0 % for MAML with a
four-layer ConvNet. All but the shots as in `cifarfs_5w1s.py`. Not run by us yet.

    python launch.py --config configs/cifarfs_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("cifarfs_5w1s")
    c.task.shot = 5
    return c
