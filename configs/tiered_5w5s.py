"""tiered-ImageNet, 5-way 5-shot, transductive: the `reproduce` setting of PyTorch-MAML, with 64 channels.

Lee et al., 'Meta-Learning with Differentiable Convex Optimization' (2019), table 1, give 70.30 +- 1.75 % for MAML with
a four-layer ConvNet. Five query images per class at test; the rest as in `tiered_5w1s.py`. Not run by us yet.

    python launch.py --config configs/tiered_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("tiered_5w1s")
    c.task.shot = 5
    c.eval.query = 5
    return c
