"""Meta-train, evaluate, or prepare data: `python launch.py --help`."""

import sys
from pathlib import Path

from maml_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], configs=Path(__file__).parent / "configs"))
