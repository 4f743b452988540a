"""Omniglot, 5-way 1-shot, TaskNorm-I (Bronskill et al. 2020, arXiv:2003.03284).

Each image is normalised by the moments of the support set, mixed with its own: inductive. The weight of the mixture is
meta-learned and does not adapt. Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_tasknorm.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.model.norm = "tasknorm"
    c.inner.fixed = "context_"
    return c
