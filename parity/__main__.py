"""`python -m parity`: ours held against PyTorch, and the original's checkpoints in and out."""

import argparse
import json
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m parity", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_check(commands)
    _add_import(commands)
    _add_export(commands)
    _add_bench(commands)
    _add_limits(commands)
    _add_compile(commands)
    chosen = parser.parse_args(arguments)
    return chosen.run(chosen)


def _add_check(commands) -> None:
    command = commands.add_parser(
        "check",
        help="replay golden files, or compare with the PyTorch reference",
        description="Replays golden files through maml_jax; without files, compares maml_jax with the PyTorch "
        "reference in float64 on a built-in grid. Exit status: 0 if everything passes, 1 if something fails, 2 if a "
        "file is unusable.",
    )
    command.add_argument("files", nargs="*", metavar="FILE", help="golden .npz files")
    command.add_argument("--json", action="store_true", help="print one object instead of lines")

    def run(chosen):
        from parity.check import check

        return check(chosen.files, chosen.json)

    command.set_defaults(run=run)


def _add_import(commands) -> None:
    command = commands.add_parser("import", help="make a work directory of one of the original's checkpoints")
    command.add_argument("checkpoint", type=Path, help="the .pth file")
    command.add_argument("workdir", type=Path, help="a folder to make, for `python launch.py evaluate --workdir`")
    command.add_argument("--config", type=Path, help="configuration to start from (default: mini_5w1s)")

    def run(chosen):
        from parity import checkpoints

        return _reporting(lambda: checkpoints.import_pth(chosen.checkpoint, chosen.workdir, chosen.config))

    command.set_defaults(run=run)


def _add_export(commands) -> None:
    command = commands.add_parser("export", help="write a run's parameters as the original's checkpoint")
    command.add_argument("workdir", type=Path, help="of a run")
    command.add_argument("checkpoint", type=Path, help="the .pth file to write")

    def run(chosen):
        from parity import checkpoints

        return _reporting(lambda: checkpoints.export_pth(chosen.workdir, chosen.checkpoint))

    command.set_defaults(run=run)


def _reporting(work) -> int:
    """Prints what `work` returns, or the user's mistake in one line."""
    from maml_jax.errors import UserError

    try:
        print(work())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _add_bench(commands) -> None:
    from parity.bench import ROWS

    command = commands.add_parser("bench", help="time and memory of a meta-step, against PyTorch")
    command.add_argument("--rows", default=",".join(ROWS), help=f"comma-separated, of {', '.join(ROWS)}")
    command.add_argument("--repeats", type=int, default=7, help="turns timed on each side (default: 7)")
    command.add_argument("--json", action="store_true", help="print a list of objects")
    command.add_argument("--list", action="store_true", help="print what the rows are, and measure nothing")

    def run(chosen):
        names = chosen.rows.split(",")
        if not set(names) <= set(ROWS):
            command.error(f"--rows {chosen.rows}: choose from {', '.join(ROWS)}")
        if chosen.repeats < 1:
            command.error("--repeats must be at least 1")
        if chosen.list:
            print(*(f"{name:30}{ROWS[name]}" for name in names), sep="\n")
            return 0
        return _bench(names, chosen.repeats, chosen.json)

    command.set_defaults(run=run)


def _bench(names: list[str], repeats: int, as_json: bool) -> int:
    from parity.bench import UnavailableError, bench, machine

    if not as_json:
        print(f"{machine()}\nper meta-step, medians of {repeats} turns; memory above that after the imports")
        print(f"{'row':30}{'ours':>10}{'other':>10}{'speedup':>9}{'ours MiB':>10}{'other MiB':>11}  other", flush=True)
    results = []
    for name in names:
        try:
            results += bench([name], repeats)
        except UnavailableError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        if not as_json:
            print(*_bench_lines(results[-1]), sep="\n", flush=True)
    if as_json:
        print(json.dumps(results, indent=2))
    return 0


def _bench_lines(result) -> list[str]:
    """A row's figures against the fastest opponent; below them the others, and those that do not run here."""
    ours, fastest = result["ours_seconds"], result["fastest"]

    def line(name, mine, seconds, memory, other):
        return f"{name:30}{mine:>10}{seconds:>9.3f}s{seconds / ours:>8.2f}x{memory}  {other}"

    memory = f"{result['ours_peak_mib']:>10.0f}{result['reference_peak_mib']:>11.0f}"
    lines = [line(result["name"], f"{ours:.3f}s", result["others"][fastest], memory, fastest)]
    for name, seconds in sorted(result["others"].items(), key=lambda item: item[1])[1:]:
        slower = f"{name}, {seconds / result['reference_seconds']:.2f} times {fastest}'s"
        lines.append(line("", "", seconds, " " * len(memory), slower))
    return lines + [f"{'':30}{name} not measured: {why}" for name, why in result["unavailable"].items()]


def _add_limits(commands) -> None:
    from parity.bench import ROWS

    command = commands.add_parser("limits", help="what limits a meta-step, and how far it is from that")
    command.add_argument("row", choices=ROWS, nargs="?", default="convnet4_84_1shot")
    command.add_argument("--repeats", type=int, default=7, help="timed runs of each measurement (default: 7)")

    def run(chosen):
        from parity.bench import machine
        from parity.limits import limits

        found = limits(ROWS[chosen.row], chosen.repeats)
        print(machine())
        for name, value in found.items():
            print(f"{name:24}{value:10.3f}")
        return 0

    command.set_defaults(run=run)


def _add_compile(commands) -> None:
    from parity.bench import ROWS
    from parity.targets import TARGETS

    command = commands.add_parser(
        "compile",
        help="what a meta-step becomes on an accelerator that is not there",
        description="Compiles meta-steps for described chips and reads the result: launches, library calls, memory, "
        "collectives. Nothing is timed. Exit status: 2 if the compiler is not installed.",
    )
    rows = ("convnet4_84_1shot", "omniglot", "resnet12_84")
    command.add_argument("--target", choices=TARGETS, required=True, help="the kind of chip")
    command.add_argument("--devices", type=int, default=1, help="how many share the tasks (default: 1)")
    command.add_argument("--tasks", type=int, default=0, help="of a meta-step (default: the row's, or one per device)")
    command.add_argument("--rows", default=",".join(rows), help=f"comma-separated, of {', '.join(ROWS)}")
    command.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the encoder")
    command.add_argument("--json", action="store_true", help="print a list of objects")

    def run(chosen):
        names = chosen.rows.split(",")
        if not set(names) <= set(ROWS):
            command.error(f"--rows {chosen.rows}: choose from {', '.join(ROWS)}")
        if chosen.devices < 1 or chosen.tasks % chosen.devices:
            command.error("--devices must be at least 1, and divide --tasks")
        return _compile({name: ROWS[name] for name in names}, chosen)

    command.set_defaults(run=run)


def _compile(rows, chosen) -> int:
    from parity.compile import NotInstalledError, compile_rows, report
    from parity.targets import TARGETS

    half = chosen.precision == "bfloat16"
    found = []
    try:
        for name, row in rows.items():
            one = {name: row}
            found += compile_rows(one, TARGETS[chosen.target], chosen.target, chosen.devices, chosen.tasks, half)
            if not chosen.json:
                print(report(found[-1]), flush=True)
    except NotInstalledError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if chosen.json:
        print(json.dumps(found, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
