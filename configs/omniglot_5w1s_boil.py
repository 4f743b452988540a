"""Omniglot, 5-way 1-shot, BOIL (Oh et al. 2021, arXiv:2008.08882): only the body adapts.

Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_boil.py --config.data.dir=FOLDER
"""

import ml_collections

from configs import omniglot_5w1s


def get_config() -> ml_collections.ConfigDict:
    c = omniglot_5w1s.get_config()
    c.inner.fixed = "^head"
    return c
