"""`python -m parity check`: recorded cases of the original replayed, or ours against PyTorch's on a grid of cases."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from parity import golden, replay
from parity.golden import TOLERANCE, GoldenCase, GoldenError

DISTURBED = {"float64": 0, "float32": 12}  # replays at most, beside that of the case itself


@dataclass(frozen=True)
class Result:
    """One quantity of one case.

    Attributes:
      case: its name.
      quantity: such as 'logits_train' or 'grad'.
      error: the largest absolute difference over the largest absolute expected entry, of all arrays of the quantity.
      tolerance: the largest error that passes.
      disturbed: 0, or which of the disturbed replays came closest; see `check_case`.
    """

    case: str
    quantity: str
    error: float
    tolerance: float
    disturbed: int = 0

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; NaN never is."""
        return self.error <= self.tolerance


def check_case(case: GoldenCase, compiler_options: dict[str, Any] | None = None) -> list[Result]:
    """Runs a case through `maml_jax` and compares every quantity that it recorded.

    A network is not differentiable where a unit is at zero before ReLU, or two are equal before max-pooling. Where a
    float32 case comes within rounding of that, rounding decides which gradient it records. What does not agree is
    therefore tried again on images moved by one rounding: it must be what the case gives for some such images.

    Args:
      case: with recorded outputs.
      compiler_options: of `jax.jit`.
    """
    tolerance = TOLERANCE[case.dtype]
    run, results = replay.in_jax(case, compiler_options), {}
    for seed in range(1 + DISTURBED[case.dtype]):
        for quantity, error in golden.compare(case, run(seed)).items():
            if quantity not in results or error < results[quantity].error:
                limit = tolerance.get(quantity, tolerance["default"])
                results[quantity] = Result(case.name, quantity, error, limit, seed)
        if all(result.passed for result in results.values()):
            break
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
    if result.disturbed:
        verdict = f"on images one rounding away (draw {result.disturbed})  {verdict}"
    return f"{result.case:30} {result.quantity:14} {result.error:9.2e}  tolerance {result.tolerance:.0e}  {verdict}"


def _to_json(results: Sequence[Result], unusable: Sequence[str]) -> str:
    """Errors that are not finite become null, for which JSON has no number."""
    rows = [asdict(r) | {"passed": r.passed} for r in results]
    for row in rows:
        row["error"] = row["error"] if math.isfinite(row["error"]) else None
    passed = not unusable and all(result.passed for result in results)
    return json.dumps({"results": rows, "unusable": list(unusable), "passed": passed}, indent=2)
