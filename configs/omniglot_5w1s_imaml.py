"""Omniglot, 5-way 1-shot, iMAML (Rajeswaran et al. 2019, arXiv:1909.04630: 99.16 +- 0.35 % by gradient descent).

As in the paper's code: λ = 2, 16 inner steps of rate 0.1, five steps of conjugate gradients. That code damps the linear
system, and drops λ at test; here neither is done. Not run to its end by us yet; the rest as in `omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_imaml.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.outer.method = "imaml"
    c.inner.proximal = 2.0
    c.inner.steps = 16
    c.eval.steps = 16
    c.inner.encoder_rate = 0.1
    c.inner.head_rate = 0.1
    return c
