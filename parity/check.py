"""`python -m parity check`: recorded cases of the original replayed, or ours against PyTorch's on a grid of cases."""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from parity import golden, replay
from parity.golden import TOLERANCE, GoldenCase, GoldenError

DISTURBED = {"float64": 0, "float32": 12}  # replays at most, beside that of the case itself


@dataclasses.dataclass(frozen=True)
class Result:
    """One quantity of one case.

    Attributes:
      case: its name.
      quantity: such as 'logits_train' or 'grad'.
      error: the largest absolute difference over the largest absolute expected entry, of all arrays of the quantity.
      tolerance: the largest error that passes.
      disturbed: 0, or which of the disturbed replays came closest; see `check_case`.
      rounding: how far the disturbed replays were from the undisturbed one, at most, on the scale of `error`.
    """

    case: str
    quantity: str
    error: float
    tolerance: float
    disturbed: int = 0
    rounding: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance, or what rounding alone does; NaN never is."""
        return self.error <= max(self.tolerance, self.rounding)


def check_case(case: GoldenCase, compiler_options: dict[str, Any] | None = None) -> list[Result]:
    """Runs a case through `maml_jax` and compares every quantity that it recorded.

    A network is not differentiable where a unit is at zero before ReLU, or two are equal before max-pooling. Where a
    float32 case comes within rounding of that, rounding decides which gradient it records. What does not agree is
    therefore tried again on images moved by one rounding: it must be what the case gives for some such images, or come
    as close to that as such images come to each other, which in a deep network with its many units is not close.

    Args:
      case: with recorded outputs.
      compiler_options: of `jax.jit`.
    """
    tolerance = TOLERANCE[case.dtype]
    run = replay.in_jax(case, compiler_options)
    outputs = run(0)
    results = {
        quantity: Result(case.name, quantity, error, tolerance.get(quantity, tolerance["default"]))
        for quantity, error in golden.compare(case, outputs).items()
    }
    undisturbed = dataclasses.replace(case, recorded=golden.as_recorded(outputs, case.sample))
    for seed in range(1, 1 + DISTURBED[case.dtype]):
        if all(result.error <= result.tolerance for result in results.values()):
            break
        outputs = run(seed)
        errors, moves = golden.compare(case, outputs), golden.compare(undisturbed, outputs)
        for quantity, best in results.items():
            closest = {"error": errors[quantity], "disturbed": seed} if errors[quantity] < best.error else {}
            results[quantity] = dataclasses.replace(best, rounding=max(best.rounding, moves[quantity]), **closest)
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
            yield golden.read_case(path)
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

    return [Result(name, q, error, methods.TOLERANCE) for q, error in methods.compare(name).items()]


def _line(result: Result) -> str:
    verdict = "pass" if result.passed else "FAIL"
    if result.error > result.tolerance and result.passed:
        verdict = f"{verdict}: rounding alone moves it by {result.rounding:.0e}"
    elif result.disturbed:
        verdict = f"{verdict} on images one rounding away, draw {result.disturbed}"
    return f"{result.case:30} {result.quantity:14} {result.error:9.2e}  tolerance {result.tolerance:.0e}  {verdict}"


def _to_json(results: Sequence[Result], unusable: Sequence[str]) -> str:
    """Errors that are not finite become null, for which JSON has no number."""
    rows = [dataclasses.asdict(r) | {"passed": r.passed} for r in results]
    for row in rows:
        for name in ("error", "rounding"):
            row[name] = row[name] if math.isfinite(row[name]) else None
    passed = not unusable and all(result.passed for result in results)
    return json.dumps({"results": rows, "unusable": list(unusable), "passed": passed}, indent=2)
