"""MATLAB files give what SciPy wrote to them; damaged ones are refused, whatever is damaged."""

import io

import numpy as np
import pytest
import scipy.io

from maml_jax.data import matlab
from maml_jax.errors import DataError

FIELDS = [("class", object), ("fname", object), ("ids", object)]
VARIABLES = {
    "labels": np.arange(300, dtype=np.uint16)[None],
    "few": np.array([[7]], np.uint8),
    "real": np.array([[0.5, -2e9, np.inf]]),
    "none": np.zeros((0, 0)),
    "names": np.array([["Ram C/V", "Zoë", ""]], object),
    "rows": np.array([[(1, "a.jpg", np.array([[3, 4]])), (2, "directory/b.jpg", np.zeros((0, 0)))]], FIELDS),
    "text": "in one line",
}


def mat(compressed=True):
    content = io.BytesIO()
    scipy.io.savemat(content, VARIABLES, do_compression=compressed)
    return content.getvalue()


@pytest.mark.parametrize("compressed", [True, False])
def test_what_scipy_wrote(compressed):
    read = {name: matlab.read(mat(compressed), name, "x") for name in VARIABLES}
    for name in ("labels", "few", "real", "none"):
        np.testing.assert_array_equal(read[name], VARIABLES[name].ravel())
    assert [text if len(text) else "" for text in read["names"]] == ["Ram C/V", "Zoë", ""]
    assert read["text"] == "in one line"
    assert [(int(row["class"][0]), row["fname"], row["ids"].tolist()) for row in read["rows"]] == [
        (1, "a.jpg", [3, 4]),
        (2, "directory/b.jpg", []),
    ]
    assert matlab.integers((row["class"] for row in read["rows"]), "x") == [1, 2]


def words(*values):
    return np.array(values, ">u4").tobytes()


def by_hand(kind, shape, rest):
    """One variable in big-endian order: an array of a class and a shape, of the name 'a'."""
    body = words(6, 8, kind, 0) + words(5, 8, *shape) + b"\0\1\0\1a\0\0\0" + rest
    return bytes(124) + b"\1\0MI" + words(14, len(body)) + body


def test_big_endian():
    assert matlab.read(by_hand(9, (1, 3), b"\0\3\0\2\5\6\7\0"), "a", "x").tolist() == [5, 6, 7]


def test_an_empty_array_may_have_no_content_at_all():
    cells = words(14, 0) * 2
    assert [cell.tolist() for cell in matlab.read(by_hand(1, (1, 2), cells), "a", "x")] == [[], []]


@pytest.mark.parametrize(("length", "names"), [(0, b"abcd"), (3, b"abcd"), (65, b"abcd"), (4, b"")])
def test_malformed_names_of_fields(length, names):
    fields = words(5, 4, length, 0) + words(1, len(names)) + names + bytes(-len(names) % 8)
    with pytest.raises(DataError, match=r"cannot read x: names of fields are malformed"):
        matlab.read(by_hand(2, (1, 1), fields), "a", "x")


def test_what_is_not_read(monkeypatch):
    with pytest.raises(DataError, match=r"x has the variables labels, few, .*text, but not other"):
        matlab.read(mat(), "other", "x")
    with pytest.raises(DataError, match=r"cannot read x: it is no MATLAB file of version 5 to 7; download it again"):
        matlab.read(b"\x89HDF" + bytes(600), "labels", "x")
    deep = VARIABLES["few"]
    for _ in range(12):
        deep = np.array([[deep, None]], object)[:, :1]
    content = io.BytesIO()
    scipy.io.savemat(content, {"deep": deep})
    with pytest.raises(DataError, match=r"arrays are more than 8 deep"):
        matlab.read(content.getvalue(), "deep", "x")
    monkeypatch.setattr(matlab, "_MOST_DECOMPRESSED", 400)
    with pytest.raises(DataError, match=r"cannot read x: it is truncated, or holds more than labels can"):
        matlab.read(mat(), "labels", "x")
    monkeypatch.setattr(matlab, "_MOST_BYTES", 400)
    with pytest.raises(DataError, match=r"x is larger than labels can be"):
        matlab.read(mat(), "labels", "x")


@pytest.mark.parametrize("compressed", [True, False])
def test_damage_is_an_error_and_nothing_worse(compressed):
    rng, content, refused = np.random.default_rng(0), mat(compressed), 0
    for _ in range(300):
        damaged = bytearray(content[: rng.integers(130, len(content) + 1)])
        for at in rng.integers(126, len(damaged), 3):
            damaged[at] = rng.integers(256)
        for name in VARIABLES:
            try:
                matlab.read(bytes(damaged), name, "x")
            except DataError:
                refused += 1
    assert refused > 500
