"""Meta-train, evaluate, or prepare data: `python launch.py --help`."""

import signal
import sys
from pathlib import Path

from maml_jax.cli import main

if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C: nothing half-built stays behind
    sys.exit(main(sys.argv[1:], configs=Path(__file__).parent / "configs"))
