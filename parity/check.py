"""`python -m parity check`: recorded cases of the original replayed, or ours against PyTorch's on a grid of cases."""

import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from parity import golden, golden_file, replay
from parity.fields import GoldenError
from parity.golden import TOLERANCE, GoldenCase
from parity.replay import Port

DISTURBED = {"float64": 0, "float32": 12}  # replays at most, beside that of the case itself


@dataclasses.dataclass(frozen=True)
class Result:
    """One quantity of one case.

    Attributes:
      case: its name.
      quantity: such as 'logits_train' or 'grad'.
      error: the largest absolute difference over the largest absolute expected entry, of all arrays of the quantity.
      tolerance: the largest error that passes.
      closest: of an error beyond the tolerance, the least that disturbed replays gave; see `check_case`.
      rounding: how far the disturbed replays were from the undisturbed one, at most, on the scale of `error`.
    """

    case: str
    quantity: str
    error: float
    tolerance: float
    closest: float | None = None
    rounding: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance


def check_case(
    case: GoldenCase,
    compiler_options: dict[str, Any] | None = None,
    change: Callable[[Port], Port] = lambda port: port,
) -> list[Result]:
    """Runs a case through `maml_jax` and compares every quantity that it recorded.

    A network is not differentiable where a unit is at zero before ReLU, or two are equal before max-pooling. Where a
    float32 case comes within rounding of that, rounding decides which gradient it records. What does not agree is
    therefore replayed on images moved by one rounding, which tells a kink from a wrong port. The verdict stays that on
    the case as it was recorded.

    Args:
      case: with recorded outputs.
      compiler_options: of `jax.jit`.
      change: puts other parts in the places of ours, see `replay.in_jax`.
    """
    tolerance = TOLERANCE[case.dtype]
    run = replay.in_jax(case, compiler_options, change)
    outputs = run(0)
    results = {
        quantity: Result(case.name, quantity, error, tolerance.get(quantity, tolerance["default"]))
        for quantity, error in golden.compare(case, outputs).items()
    }
    undisturbed = dataclasses.replace(case, recorded=golden.as_recorded(outputs, case.sample))
    for seed in range(1, 1 + DISTURBED[case.dtype]):
        failed = {quantity: result for quantity, result in results.items() if not result.passed}
        if not failed:
            break
        outputs = run(seed)
        errors, moves = golden.compare(case, outputs), golden.compare(undisturbed, outputs)
        for quantity, result in failed.items():
            closest = min(result.error if result.closest is None else result.closest, errors[quantity])
            rounding = max(result.rounding or 0.0, moves[quantity])
            results[quantity] = dataclasses.replace(result, closest=closest, rounding=rounding)
    return list(results.values())


def check(files: Sequence[str], as_json: bool) -> int:
    """Checks golden files, or the built-in grid and the methods if there are none, and prints a line per quantity.

    Args:
      files: paths.
      as_json: print one JSON object at the end instead of lines along the way.

    Returns:
      The exit status: 0 if everything passed, 1 if something failed, 2 if a file is unusable, whatever the others gave.
    """
    results, unusable, cases = [], [], 0

    def add(found):
        nonlocal cases
        cases += 1
        results.extend(found)
        if not as_json:
            print(*map(_line, found), sep="\n", flush=True)

    for case in _read(files) if files else _grid():
        if isinstance(case, GoldenError):
            unusable.append(str(case))
            if not as_json:
                print(f"unusable: {case}", flush=True)
            continue
        add(check_case(case))
    for name in () if files else _methods():
        add(_check_method(name))
    failed = [result for result in results if not result.passed]
    if as_json:
        print(_to_json(results, unusable))
    else:
        print(
            f"{cases} cases, {len(results)} quantities: {len(results) - len(failed)} passed, {len(failed)} failed"
            + (f"; {len(unusable)} files unusable" if unusable else "")
        )
    return 2 if unusable else int(bool(failed))


def _read(files: Sequence[str]) -> Iterable[GoldenCase | GoldenError]:
    for path in files:
        try:
            yield golden_file.read_case(path)
        except GoldenError as error:
            yield error


def _grid() -> Iterable[GoldenCase]:
    from parity import grid  # which takes torch; replaying files does not

    return grid.grid()


def _methods() -> Iterable[str]:
    from parity import methods

    return methods.METHODS


def _check_method(name: str) -> list[Result]:
    from parity import methods

    return [Result(name, q, error, methods.TOLERANCE) for q, error in methods.compare(name)[0].items()]


def _line(result: Result) -> str:
    verdict = "pass" if result.passed else "FAIL"
    if result.closest is not None:
        kink = f"images one rounding away: at best {result.closest:.2e}, and moved by {result.rounding:.0e}"
        verdict = f"({kink})  {verdict}"
    return f"{result.case:30} {result.quantity:14} {result.error:9.2e}  tolerance {result.tolerance:.0e}  {verdict}"


def _to_json(results: Sequence[Result], unusable: Sequence[str]) -> str:
    """Errors that are not finite become null, for which JSON has no number."""
    rows = [dataclasses.asdict(r) | {"passed": r.passed} for r in results]
    for row in rows:
        for name in ("error", "closest", "rounding"):
            row[name] = row[name] if row[name] is not None and math.isfinite(row[name]) else None
    passed = not unusable and all(result.passed for result in results)
    return json.dumps({"results": rows, "unusable": list(unusable), "passed": passed}, indent=2)
