"""Omniglot, 5-way 1-shot, first-order MAML (Finn, Abbeel & Levine 2017, section 5.2).

The inner gradients are constants to the outer loop. Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_fomaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.inner.first_order = True
    return c
