"""Golden files: what is drawn from them, and what is refused."""

import json
import math
import re

import numpy as np
import pytest
import torch

from parity.fields import GoldenError
from parity.golden_file import parameter_shapes, read_case
from parity.reference import ModelSpec, init_params
from tests.parity.cases import SPEC, make, read, write

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
        ("params.1.scale", "large"),
    ],
)
def test_unusable_fields_are_refused_by_name(tmp_path, field, value):
    shown = re.sub(r"\.(\d+)", r"[\1]", field)
    spec, arrays = make()
    put(spec, field, value)
    with pytest.raises(GoldenError, match=re.escape(f"case.npz: spec.{shown} is {value!r}, expected ")):
        read_case(write(tmp_path, spec, arrays))


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("params.0.name", "encoder.stem.weight", "params[0] is encoder.stem.weight [32, 3, 3, 3]"),
        ("params.0.name", "encoder.encoder.conv2.conv.weight", "params[0] is encoder.encoder.conv2.conv.weight [32, 3"),
        ("params.1.shape", [64], "params[1] is encoder.encoder.conv1.conv.bias [64]"),
        ("params.1.name", "encoder.encoder.conv1.conv.weight", "params[1] is encoder.encoder.conv1.conv.weight [32]"),
    ],
)
def test_parameters_that_the_encoder_lacks_are_refused(tmp_path, field, value, shown):
    spec, arrays = make()
    put(spec, field, value)
    with pytest.raises(GoldenError, match=re.escape(shown) + ".*which is unknown, misshapen or listed twice"):
        read_case(write(tmp_path, spec, arrays))


def put(spec, field, value):
    *parents, last = field.split(".")
    for key in parents:
        spec = spec[int(key) if key.isdigit() else key]
    spec[last] = value


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


@pytest.mark.parametrize(
    "asked", [{"n_query": 10**9}, {"n_way": 10**9}, {"n_episode": 10**18}, {"image_size": 6 * 10**9}]
)
def test_more_than_can_be_drawn_is_refused(tmp_path, asked):
    spec, arrays = make()
    with pytest.raises(GoldenError, match=r"spec asks for [\d,]+ images of \d+ pixels: more than can be drawn"):
        read_case(write(tmp_path, spec | asked, arrays))


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
