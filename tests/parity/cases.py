"""Golden files made up by tests."""

import copy
import json
import math

import numpy as np

from parity.golden_file import parameter_shapes, read_case

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
