"""Omniglot, 5-way 1-shot, MAML++ (Antoniou, Edwards & Storkey 2018, arXiv:1810.09502: 99.47 %).

All its parts: learned rates for each tensor and step, scale, bias and statistics of normalisation for each step, the
multi-step loss, first-order gradients at the start, the cosine. How long the two annealings last, as shares of the run,
is our choice. Inductive at test, as the paper's text has it; the public code, which the paper's figures come from,
normalises by the batch: --config.model.norm=per_step_batch. Not run to its end by us yet.

    python launch.py --config configs/omniglot_5w1s_mamlpp.py --config.data.dir=FOLDER
"""

from maml_jax.config import preset


def get_config():
    c = preset("omniglot_5w1s")
    c.inner.steps = 5
    c.inner.encoder_rate = 0.1
    c.inner.head_rate = 0.1
    c.inner.fixed = "norm"
    c.inner.learn_rates = "tensor"
    c.inner.rates_per_step = True
    c.model.norm = "per_step"
    c.outer.multi_step = c.train.get_ref("steps") // 4
    c.outer.first_order = c.train.get_ref("steps") // 4
    c.eval.steps = 5
    return c
