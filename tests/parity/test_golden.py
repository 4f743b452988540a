"""How a replay is compared with a golden file."""

import math

import numpy as np
import pytest

from parity.golden import TOLERANCE, compare, relative_error, sampled, tree_error
from tests.parity.cases import read


def test_samples_are_spread_over_the_array():
    array = np.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(sampled(array, 5), [0, 2, 4, 6, 8])
    np.testing.assert_array_equal(sampled(array, 12), np.arange(12))
    np.testing.assert_array_equal(sampled(np.array(3.0), 5), [3.0])


def test_errors_are_relative_to_the_largest_entry():
    assert relative_error(np.array([1.0, -3.5]), np.array([1.0, -4.0])) == 0.125
    assert relative_error(np.zeros(2), np.zeros(2)) == 0
    assert relative_error(np.array([1e-30, 0]), np.zeros(2)) == math.inf
    assert math.isnan(relative_error(np.array([np.nan, 0]), np.ones(2)))
    # On a tree's one scale, an array of rounding errors is as small as it is.
    assert tree_error({"a": np.array([8.0]), "b": np.array([1e-9])}, {"a": np.array([8.0]), "b": np.zeros(1)}) < 1e-9


@pytest.mark.parametrize("actual", [{"a": np.ones(2)}, {"a": np.ones(2), "c": np.ones(1)}, {"a": np.ones(1)}])
def test_trees_of_other_names_or_shapes_are_not_compared(actual):
    with pytest.raises(ValueError, match=r"on one side only: b|shape"):
        tree_error(actual, {"a": np.ones(2), "b": np.ones(1)} if len(actual["a"]) == 2 else {"a": np.ones(2)})


def replayed(case, value=1.0):
    """Constant arrays of the full shapes, as a replay would return them, and the norms they imply."""
    arrays = {name: array for name, array in case.recorded.items() if "/" not in name or name.startswith("buffer/")}
    for name, param in case.params.items():
        arrays |= {f"grad/{name}": np.full(param.shape, value), f"outer_final/{name}": np.full(param.shape, value)}
        case.recorded[f"gradnorm/{name}"] = np.asarray(value * math.sqrt(param.size))
    return arrays


def test_an_exact_replay_has_no_error(tmp_path):
    case = read(tmp_path)
    errors = compare(case, replayed(case))
    assert errors == dict.fromkeys(errors, 0.0)
    assert errors.keys() == {name.split("/")[0] for name in case.recorded}
    assert set(TOLERANCE["float64"]) - {"default"} <= errors.keys()


@pytest.mark.parametrize("name", ["logits_eval", "buffer/encoder.encoder.conv1.bn.running_mean_1", "outer_losses"])
def test_one_wrong_entry_is_one_wrong_quantity(tmp_path, name):
    case = read(tmp_path)
    actual = replayed(case)
    actual[name] = actual[name].copy()
    actual[name].flat[-1] += 0.25
    assert {quantity: e for quantity, e in compare(case, actual).items() if e} == {name.split("/")[0]: 0.25}


def test_entries_between_the_samples_show_in_the_norm(tmp_path):
    case = read(tmp_path)
    actual = replayed(case)
    actual["grad/classifier.linear.weight"].flat[-1] = 100.0  # the last of 96; the samples are the first 50
    errors = compare(case, actual)
    assert errors["grad"] == 0
    assert errors["gradnorm"] > 0.1


def test_a_replay_lacking_an_array_is_refused(tmp_path):
    case = read(tmp_path)
    actual = replayed(case)
    del actual["outer_losses"]
    with pytest.raises(ValueError, match="made_up: on one side only: outer_losses"):
        compare(case, actual)


@pytest.mark.parametrize(
    ("dtype", "name", "counts"), [("float32", "adam", False), ("float32", "sgd", True), ("float64", "adam", True)]
)
def test_magnified_rounding_is_no_error(tmp_path, dtype, name, counts):
    """A bias that batch moments cancel moves by whole Adam steps in float32, in whichever direction rounding points."""
    outer = {"name": name, "lr": 0.001, "steps": 2}
    case = read(tmp_path, dtype=dtype, outer=outer, bn_args={"track_running_stats": False})
    actual = replayed(case)
    actual["outer_final/encoder.encoder.conv2.conv.bias"][3] += 0.25
    assert (compare(case, actual)["outer_final"] > 0) == counts
