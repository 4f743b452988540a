"""A network trained on all sinusoid tasks alike, which MAML is compared with (Finn et al. 2017, section 5.1).

Without inner steps the meta-loss is the loss of all tasks alike; at test the network is fine-tuned as MAML's is. The
figures stand in `sinusoid.py`.

    python launch.py --config configs/sinusoid_joint.py
"""

from maml_jax.config import preset


def get_config():
    c = preset("sinusoid")
    c.inner.steps = 0
    c.eval.steps = 10
    return c
