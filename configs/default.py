"""Every field there is, with its default, from the table in `maml_jax.config.fields`. Other configurations change some.

Set any of them on the command line: --config.inner.steps=10
"""

from maml_jax.config import default as get_config

__all__ = ["get_config"]
