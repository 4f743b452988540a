"""Omniglot, 5-way 1-shot, ProtoNet (Snell et al. 2017, arXiv:1703.05175).

The nearest class mean of learned features: prototypes, and no inner loop. Table 1 of the paper has 98.8 %, with more
ways in training than at test, which helps (--config.task.way=20). Not run to its end by us yet; the rest as in
`omniglot_5w1s.py`.

    python launch.py --config configs/omniglot_5w1s_protonet.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.model.head = "prototypes"
    c.inner.steps = 0
    c.eval.steps = 0
    return c
