"""mini-ImageNet, 5-way 1-shot, ANIL (Raghu et al. 2020, arXiv:1909.09157: 46.7 +- 0.4 %): only the head adapts.

Not run to its end by us yet; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w1s_anil.py --config.data.dir=FOLDER
"""

import ml_collections

from configs import mini_5w1s


def get_config() -> ml_collections.ConfigDict:
    c = mini_5w1s.get_config()
    c.inner.fixed = "^encoder"
    return c
