"""Sinusoid regression, 10-shot: the first experiment of the MAML paper (Finn, Abbeel & Levine 2017, section 5.1).

As in the paper: amplitudes in 0.1 .. 5, phases in 0 .. pi, inputs in -5 .. 5, two layers of 40 units, one inner step of
rate 0.01, Adam 1e-3, 25 tasks per meta-step, 70,000 meta-steps. Here the outer rate falls to 0 by a cosine, and biases
start at random. The evaluation gives the error before adaptation and after each of ten steps, over 600 tasks, and draws
the adapted curves of three of them. `sinusoid_joint` trains a network on all tasks alike, to compare with. Seed 0, mean
squared error with its 95 % interval:

    steps          0                 1                 5                10
    maml    3.1755 ± 0.2384   0.3778 ± 0.0370   0.1901 ± 0.0414   0.1196 ± 0.0148
    joint   3.1677 ± 0.2378   2.5082 ± 0.1884   2.0041 ± 0.1582   1.6909 ± 0.1420

    python launch.py --config configs/sinusoid.py
    python launch.py --config configs/sinusoid_joint.py
    python launch.py --config configs/sinusoid.py --config.task.shot=5 --workdir runs/sinusoid_5shot
"""

from maml_jax.config import preset


def get_config():
    c = preset("default")
    c.data.name = "sinusoid"
    c.model.encoder = "mlp"
    c.model.loss = "squared_error"
    c.task.way = 1
    c.task.shot = 10
    c.task.query = 10
    c.inner.steps = 1
    c.inner.encoder_rate = 0.01
    c.inner.head_rate = 0.01
    c.inner.checkpoint = "none"
    c.outer.clip = 0.0
    c.outer.schedule = "cosine"
    c.train.steps = 70_000
    c.train.tasks = 25
    c.train.tasks_at_once = 25
    c.train.report_every = 2000
    c.train.validate_every = 0
    c.train.checkpoint_every = 10_000
    c.parallel.devices = 1
    c.eval.query = 100
    c.eval.steps = 10
    c.eval.by_step = True
    c.eval.checkpoint = "latest"
    return c
