"""mini-ImageNet, 5-way 5-shot, transductive: the `reproduce` setting of PyTorch-MAML.

Finn, Abbeel & Levine (2017) report 63.11 +- 0.92 %. Five query images per class at test; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w5s.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.task.shot = 5
    c.eval.query = 5
    return c
