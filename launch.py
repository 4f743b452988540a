"""Meta-train, evaluate, or prepare data, as `maml-jax` does: `python launch.py --help`."""

import sys

from maml_jax.cli import console

if __name__ == "__main__":
    sys.exit(console())
