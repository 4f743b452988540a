"""mini-ImageNet, 5-way 1-shot, first-order MAML (Finn, Abbeel & Levine 2017: 48.07 +- 1.75 %).

Not run to its end by us yet; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w1s_fomaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.inner.first_order = True
    return c
