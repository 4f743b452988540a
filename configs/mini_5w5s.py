"""mini-ImageNet, 5-way 5-shot, transductive: the `reproduce` setting of PyTorch-MAML.

Finn, Abbeel & Levine (2017) report 63.11 +- 0.92 %. Five query images per class at test; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w5s.py --config.data.dir=FOLDER
"""

import ml_collections

from configs import mini_5w1s


def get_config() -> ml_collections.ConfigDict:
    c = mini_5w1s.get_config()
    c.task.shot = 5
    c.eval.query = 5
    return c
