"""mini-ImageNet, 5-way 1-shot, ANIL (Raghu et al. 2020, arXiv:1909.09157: 46.7 +- 0.4 %): only the head adapts.

Not run to its end by us yet; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w1s_anil.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.inner.fixed = "^encoder"
    return c
