"""The embedded default: procedural handwriting-like characters, 5-way 1-shot, no download.

A small run that shows the whole path in a few minutes on two CPU cores. The figures are in the README.

    python launch.py
"""

from maml_jax.config import preset


def get_config():
    c = preset("default")
    c.data.name = "glyphs"
    c.task.query = 5
    c.eval.query = 15
    c.inner.steps = 1
    c.inner.encoder_rate = 0.4
    c.inner.head_rate = 0.4
    c.eval.steps = 3
    c.train.steps = 1000
    c.train.tasks = 8
    c.train.report_every = 50
    c.train.validate_every = 250
    c.train.validation_tasks = 100
    c.train.checkpoint_every = 250
    return c
