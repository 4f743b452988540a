"""Golden files: what is drawn from them, what is refused, and how a replay is compared with them."""

import copy
import json
import math

import numpy as np
import pytest
import torch

from parity.golden import (
    TOLERANCE,
    GoldenError,
    compare,
    parameter_shapes,
    read_case,
    relative_error,
    sampled,
    tree_error,
)
from parity.reference import ModelSpec, init_params

SPEC = {
    "name": "made_up",
    "encoder": "convnet4",
    "bn_args": {"track_running_stats": True, "episodic": ["conv1", "conv2", "conv3", "conv4"]},
    "classifier_args": {"temp": 2, "learn_temp": True},
    "inner_args": {
        "n_step": 2,
        "encoder_lr": 0.01,
        "classifier_lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 0.0005,
        "first_order": False,
        "frozen": ["bn"],
        "reset_classifier": False,
    },
    "eval_n_step": 3,
    "n_way": 3,
    "n_shot": 2,
    "n_query": 4,
    "n_episode": 2,
    "image_size": 18,
    "dtype": "float64",
    "seed": 7,
    "sample": 50,
    "outer": {"name": "rmsprop", "lr": 0.001, "steps": 2},
}


def make(**changes):
    """A spec with some fields changed, and arrays that belong to it."""
    spec = copy.deepcopy(SPEC) | changes
    shapes = parameter_shapes(
        spec["encoder"], spec["n_way"], spec["image_size"], spec["classifier_args"].get("learn_temp", False)
    )
    spec["params"] = [{"name": n, "shape": list(s), "offset": 1.0, "scale": 0.5} for n, s in shapes.items()]
    logits = (spec["n_episode"], spec["n_way"] * spec["n_query"], spec["n_way"])
    arrays = {"logits_train": np.ones(logits), "logits_eval": np.ones(logits), "loss_train": np.ones(())}
    for name, shape in shapes.items():
        kept = min(math.prod(shape), spec["sample"])
        arrays |= {f"grad/{name}": np.ones(kept), f"gradnorm/{name}": np.ones(())}
        if spec["outer"]:
            arrays[f"outer_final/{name}"] = np.ones(kept)
        if name.endswith("bn.weight") and spec["bn_args"]["track_running_stats"]:
            episodic = name.split(".")[2] in spec["bn_args"].get("episodic", ())
            episodes = range(spec["n_episode"] if episodic else 0)
            for kind in ("mean", "var"):
                buffer = f"buffer/{name.removesuffix('weight')}running_{kind}"
                arrays |= {key: np.ones(shape) for key in (buffer, *(f"{buffer}_{i}" for i in episodes))}
    if spec["outer"]:
        arrays["outer_losses"] = np.ones(spec["outer"]["steps"])
    return spec, arrays


def write(folder, spec, arrays):
    path = folder / "case.npz"
    np.savez(path, spec=np.array(json.dumps(spec)), **arrays)
    return path


def read(folder, **changes):
    return read_case(write(folder, *make(**changes)))


# Reading


def test_a_case_holds_what_its_file_says(tmp_path):
    case = read(tmp_path, bn_args={"track_running_stats": True, "episodic": ["conv1", "conv3"]}, n_episode=1)
    assert case.norm == {"conv1": "episodic", "conv2": "global", "conv3": "episodic", "conv4": "global"}
    assert (case.temp, case.learn_temp, case.outer.name, case.outer.weight_decay) == (2, True, "rmsprop", 0.0)
    assert (case.inner.n_step, case.inner.frozen, case.inner.classifier_lr, case.eval_n_step) == (2, ("bn",), 0.1, 3)
    assert list(case.params)[-3:] == ["classifier.temp", "classifier.linear.weight", "classifier.linear.bias"]
    assert case.params["classifier.temp"].shape == ()
    np.testing.assert_array_equal(case.support_y, [0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(case.query_y, np.repeat([0, 1, 2], 4))


def test_draws_follow_the_published_formulas(tmp_path):
    case = read(tmp_path, image_size=84, dtype="float32")
    index = list(case.params).index("classifier.linear.weight")
    weight = 1.0 + 0.5 * np.random.default_rng([7, index]).standard_normal((3, 800))
    np.testing.assert_array_equal(case.params["classifier.linear.weight"], weight.astype("float32"))
    pattern = np.random.default_rng([7, 90000]).random((2, 3, 3, 6, 6))
    noise = np.random.default_rng([7, 90002]).random((2, 3, 4, 3, 84, 84))
    assert case.query_x.shape == (2, 12, 3, 84, 84)
    assert case.support_x.shape == (2, 6, 3, 84, 84)
    # Episode 1, class 2, image 3, channel 0, pixel (83, 14): the pattern's cell (5, 1).
    expected = np.float32(0.6 * pattern[1, 2, 0, 5, 1] + 0.4 * noise[1, 2, 3, 0, 83, 14])
    assert case.query_x[1, 2 * 4 + 3, 0, 83, 14] == expected
    assert {array.dtype.name for array in (case.query_x, case.support_x, *case.params.values())} == {"float32"}


def test_streams_follow_the_order_of_the_list(tmp_path):
    spec, arrays = make()
    spec["params"].reverse()
    case = read_case(write(tmp_path, spec, arrays))
    bias = 1.0 + 0.5 * np.random.default_rng([7, 0]).standard_normal(3)
    np.testing.assert_array_equal(case.params["classifier.linear.bias"], bias)


@pytest.mark.parametrize(
    ("bn_args", "modes"),
    [
        ({"track_running_stats": False}, "batch"),
        ({"track_running_stats": False, "episodic": ["conv1"]}, "batch"),
        ({"track_running_stats": True}, "global"),
    ],
)
def test_normalisation_is_the_same_for_all_where_nothing_is_listed(tmp_path, bn_args, modes):
    case = read(tmp_path, bn_args=bn_args, n_episode=1, classifier_args={}, outer=None)
    assert set(case.norm.values()) == {modes}
    assert (case.temp, case.learn_temp, case.outer) == (1.0, False, None)


@pytest.mark.parametrize("encoder", ["convnet4", "wide-convnet4", "resnet12", "wide-resnet12"])
@pytest.mark.parametrize("learn_temp", [False, True])
def test_parameters_are_those_of_the_reference(encoder, learn_temp):
    params = init_params(ModelSpec(encoder, 4, 36, learn_temp=learn_temp), torch.Generator())
    shapes = parameter_shapes(encoder, 4, 36, learn_temp)
    assert list(shapes.items()) == [(name, tuple(value.shape)) for name, value in params.items()]


# Refusing


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("encoder", "resnet18"),
        ("encoder", ["convnet4"]),
        ("dtype", "bfloat16"),
        ("n_way", 0),
        ("n_shot", 1.0),
        ("n_query", True),
        ("n_episode", "2"),
        ("sample", -1),
        ("seed", None),
        ("eval_n_step", -1),
        ("image_size", 20),
        ("image_size", 12),
        ("bn_args", []),
        ("bn_args.track_running_stats", 1),
        ("bn_args.episodic", ["layer1"]),
        ("bn_args.episodic", ["conv1.bn"]),
        ("bn_args.episodic", "conv1"),
        ("classifier_args.temp", math.nan),
        ("classifier_args.learn_temp", "yes"),
        ("inner_args.n_step", 2.5),
        ("inner_args.encoder_lr", -0.1),
        ("inner_args.momentum", True),
        ("inner_args.first_order", 0),
        ("inner_args.frozen", "bn"),
        ("inner_args.frozen", [1]),
        ("outer", []),
        ("outer.name", "lbfgs"),
        ("outer.lr", "0.1"),
        ("outer.steps", 0),
        ("params", {}),
        ("params.0.name", "encoder.stem.weight"),
        ("params.0.name", "encoder.encoder.conv2.conv.weight"),
        ("params.1.shape", [64]),
        ("params.1.scale", "large"),
    ],
)
def test_unusable_fields_are_refused_by_name(tmp_path, field, value):
    spec, arrays = make()
    *parents, last = field.split(".")
    target = spec
    for key in parents:
        target = target[int(key) if key.isdigit() else key]
    target[last] = value
    with pytest.raises(GoldenError) as error:
        read_case(write(tmp_path, spec, arrays))
    assert "case.npz: spec" in str(error.value)
    assert field.split(".")[0] in str(error.value)
    assert last in str(error.value) or str(value) in str(error.value)


@pytest.mark.parametrize("where", ["", "bn_args", "classifier_args", "inner_args", "outer", "params.3"])
def test_unknown_fields_are_refused(tmp_path, where):
    spec, arrays = make()
    target = spec
    for key in where.split(".") if where else ():
        target = target[int(key) if key.isdigit() else key]
    target["alpha"] = 1
    with pytest.raises(GoldenError, match=r"case\.npz: spec.*\.alpha is unknown"):
        read_case(write(tmp_path, spec, arrays))


REQUIRED = [name for name in SPEC if name != "name"] + ["params", "bn_args.track_running_stats", "outer.lr"]


@pytest.mark.parametrize("field", REQUIRED + [f"inner_args.{name}" for name in SPEC["inner_args"]])
def test_missing_fields_are_refused(tmp_path, field):
    spec, arrays = make()
    *parents, last = field.split(".")
    del (spec[parents[0]] if parents else spec)[last]
    with pytest.raises(GoldenError, match=rf"case\.npz: spec.*{field} is missing"):
        read_case(write(tmp_path, spec, arrays))


@pytest.mark.parametrize("episodic", [[], ["conv1", "conv2", "conv4"]])
def test_global_statistics_of_several_episodes_are_refused(tmp_path, episodic):
    """There the original's meta-gradient is wrong, so that a replay could only fail."""
    with pytest.raises(GoldenError, match=r"case\.npz: spec\.n_episode is 2, expected 1 where layers keep global"):
        read(tmp_path, bn_args={"track_running_stats": True, "episodic": episodic})


def test_a_parameter_too_few_is_refused(tmp_path):
    spec, arrays = make()
    del spec["params"][2]
    with pytest.raises(GoldenError, match=r"params lacks encoder\.encoder\.conv1\.bn\.weight"):
        read_case(write(tmp_path, spec, arrays))


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("loss_train", None, "missing"),
        ("outer_losses", None, "missing"),
        ("grad/classifier.temp", None, "missing"),
        ("buffer/encoder.encoder.conv3.bn.running_var_1", None, "missing"),
        ("buffer/encoder.encoder.conv2.bn.running_var_2", np.ones(32), "unknown"),
        ("logits_test", np.ones(3), "unknown"),
        ("logits_eval", np.ones((2, 12, 2)), "expected"),
        ("grad/classifier.linear.weight", np.ones(96), "expected"),
        ("loss_train", np.ones((), int), "expected"),
        ("outer_losses", np.array([1.0, np.nan]), "not finite"),
        ("spec", None, "missing"),
        ("spec", np.ones(3), "missing or not a string"),
        ("spec", np.array("{"), "not JSON"),
        ("spec", np.array("[]"), "expected an object"),
    ],
)
def test_unusable_arrays_are_refused_by_name(tmp_path, name, value, problem):
    spec, arrays = make()
    arrays = {"spec": np.array(json.dumps(spec))} | arrays | {name: value}
    np.savez(tmp_path / "case.npz", **{key: array for key, array in arrays.items() if array is not None})
    with pytest.raises(GoldenError) as error:
        read_case(tmp_path / "case.npz")
    assert all(part in str(error.value) for part in ("case.npz", name, problem))


@pytest.mark.parametrize("damage", ["absent", "folder", "empty", "text", "cut", "flipped", "npy", "pickled"])
def test_unusable_files_are_refused(tmp_path, damage):
    path = tmp_path / "case.npz"
    whole = write(tmp_path, *make()).read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.ones(3))
    elif damage == "pickled":
        np.savez(path, spec=np.array([{}], dtype=object))
    elif damage != "absent":
        middle = len(whole) // 2
        flipped = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
        path.write_bytes({"empty": b"", "text": b"no archive", "cut": whole[:middle], "flipped": flipped}[damage])
    with pytest.raises(GoldenError, match=r"case\.npz: not a readable \.npz file"):
        read_case(path)


# Comparing


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
