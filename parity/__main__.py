"""`python -m parity bench`: our meta-step beside the PyTorch reference."""

import argparse
import json
import sys

from parity.bench import ROWS, bench, machine


def main() -> int:
    """Runs the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parity", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("bench", help="time and memory of a meta-step, against the PyTorch reference")
    command.add_argument("--rows", default=",".join(ROWS), help=f"comma-separated, of {', '.join(ROWS)}")
    command.add_argument("--repeats", type=int, default=7, help="steps timed on each side (default: 7)")
    command.add_argument("--json", action="store_true", help="print a list of objects")
    arguments = parser.parse_args()
    names = arguments.rows.split(",")
    if not set(names) <= set(ROWS):
        parser.error(f"--rows {arguments.rows}: choose from {', '.join(ROWS)}")
    if arguments.repeats < 1:
        parser.error("--repeats must be at least 1")
    if not arguments.json:
        print(f"{machine()}\nmedians of {arguments.repeats} steps; memory above that after the imports")
        print(f"{'row':26}{'ours':>10}{'PyTorch':>10}{'speedup':>9}{'ours MiB':>10}{'PyTorch MiB':>13}", flush=True)
    results = []
    for name in names:
        results += bench([name], arguments.repeats)
        if not arguments.json:
            r = results[-1]
            print(
                f"{name:26}{r['ours_seconds']:>9.3f}s{r['reference_seconds']:>9.3f}s{r['speedup']:>8.2f}x"
                f"{r['ours_peak_mib']:>10.0f}{r['reference_peak_mib']:>13.0f}",
                flush=True,
            )
    if arguments.json:
        print(json.dumps(results, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
