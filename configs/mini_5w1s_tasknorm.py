"""mini-ImageNet, 5-way 1-shot, TaskNorm-I (Bronskill et al. 2020, arXiv:2003.03284: 42.4 % with first-order MAML).

Each image is normalised by the moments of the support set, mixed with its own: inductive. The weight of the mixture is
meta-learned and does not adapt. Query images do not depend on one another, so 15 per class serve at
test. Not run to its end by us yet; the rest as in `mini_5w1s.py`.

    python launch.py --config configs/mini_5w1s_tasknorm.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("mini_5w1s")
    c.model.norm = "tasknorm"
    c.inner.fixed = "norm"
    c.eval.query = 15
    return c
