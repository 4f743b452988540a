import os
import pickle
import struct

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest

from maml_jax.data import safe_pickle
from maml_jax.errors import DataError

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def write(tmp_path, content):
    file = tmp_path / "some.pickle"
    file.write_bytes(content)
    return file


def python2_pickle(data, labels):
    """Pickles `{'data': data, 'labels': labels}` in protocol 2 as Python 2 with NumPy 1 did: strings are bytes."""

    def text(value):
        return b"T" + struct.pack("<i", len(value)) + value

    shape = b"(" + b"".join(b"J" + struct.pack("<i", side) for side in data.shape) + b"t"
    dtype = b"cnumpy\ndtype\n" + text(b"u1") + b"K\x00K\x01\x87R(K\x03" + text(b"|") + b"NNN" + 2 * b"J\xff\xff\xff\xff"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text(b"b") + b"\x87R"
    array = empty + b"(K\x01" + shape + dtype + b"K\x00tb\x89" + text(data.tobytes()) + b"tb"
    numbers = b"](" + b"".join(b"J" + struct.pack("<i", label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def assert_same(actual, expected):
    assert type(actual) is type(expected)
    if isinstance(expected, np.ndarray):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    elif isinstance(expected, dict):
        assert list(actual) == list(expected)
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    else:
        assert actual == expected


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_plain_data_round_trips(tmp_path, protocol):
    value = {
        "data": np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2),
        b"fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 3), np.float32),
        "text": np.array(["a", "bcd"]),
        "objects": np.array([[1, "two"], [None, b"three"]], dtype=object),
        "nested": [(1, 2.5, True, None), {"scalar": np.float32(0.5), "integer": np.int64(7)}, "ü"],
    }
    assert_same(safe_pickle.load(write(tmp_path, pickle.dumps(value, protocol=protocol))), value)


ARRAYS = hnp.arrays(
    st.sampled_from(["u1", "<i8", ">f4", "?", "S3"]), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)
)


@hypothesis.settings(
    max_examples=40, deadline=None, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture]
)
@hypothesis.given(array=ARRAYS, protocol=st.sampled_from(PROTOCOLS), cut=st.floats(0, 1, exclude_max=True))
def test_arrays_round_trip_and_truncation_is_found(tmp_path, array, protocol, cut):
    content = pickle.dumps([array], protocol=protocol)
    (loaded,) = safe_pickle.load(write(tmp_path, content))
    assert loaded.dtype == array.dtype
    assert loaded.tobytes() == array.tobytes()
    file = write(tmp_path, content[: int(cut * len(content))])
    with pytest.raises(DataError, match=r"cannot read .*some\.pickle: truncated"):
        safe_pickle.load(file)


def test_python2_pickle(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)
    loaded = safe_pickle.load(write(tmp_path, python2_pickle(data, [7, -1, 300])))
    assert_same(loaded, {"data": data, "labels": [7, -1, 300]})


@pytest.mark.parametrize("array", [np.zeros(3), np.array([1, "two"], dtype=object)])
def test_arrays_are_read_only(tmp_path, array):
    loaded = safe_pickle.load(write(tmp_path, pickle.dumps(array)))
    with pytest.raises(ValueError, match="read-only"):
        loaded[0] = 1


class Calls:
    """Pickles as a call."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"data": x, "labels": [0]}, lambda x: np.array([x])])
def test_commands_are_not_run(tmp_path, protocol, wrap):
    victim = tmp_path / "victim"
    command = Calls(os.system, (f"touch {victim}",))
    file = write(tmp_path, pickle.dumps(wrap(command), protocol=protocol))
    with pytest.raises(DataError, match=r"some\.pickle asks for (posix|nt|os)\.system.*not loaded"):
        safe_pickle.load(file)
    assert not victim.exists()
    pickle.loads(pickle.dumps(command))
    assert victim.exists(), "the command would not have worked anyway"


@pytest.mark.parametrize(
    "name",
    ["builtins.eval", "builtins.getattr", "numpy.load", "numpy.memmap", "functools.partial", "copyreg._reconstructor"],
)
def test_other_globals_are_refused(tmp_path, name):
    module, _, attribute = name.rpartition(".")
    file = write(tmp_path, f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match=f"asks for {name}"):
        safe_pickle.load(file)


def test_dtype_that_passes_bytes_for_pointers(tmp_path):
    objects = np.dtype("O", copy=True)
    objects.__setstate__((3, "|", None, None, None, -1, -1, 0))  # NumPy no longer sees that it holds pointers
    rebuild = np.zeros(0).__reduce__()[0]
    array = Calls(rebuild, (np.ndarray, (0,), b"b"), (1, (8,), objects, False, b"\x41" * 8))
    with pytest.raises(DataError, match="without a list"):
        safe_pickle.load(write(tmp_path, pickle.dumps(array)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "truncated"),
        (b"not a pickle", "truncated or not a pickle"),
        (b"c_codecs\nencode\n.", "_Global is not plain data"),
        (b"cnumpy\ndtype\n(Vu1\ntR.", "_Dtype is not plain data"),
        (b"cnumpy\nndarray\n)R.", "no attribute 'array'"),
        (b"c_codecs\nencode\n}(V_function\nI1\nub.", "a function has no state"),
        (b"c_codecs\nencode\n(Va\nVidna\ntR.", "bytes encoded as idna"),
        (b"cnumpy\ndtype\n(Vu1,u1\ntR.", "not plain data"),
        (b"cnumpy\ndtype\n(VV8\ntR.", "arrays of V8 are not plain data"),
        (b"](I1\nI2\ne0.", "UnpicklingError|IndexError|EOFError"),
        (b"]q\x00h\x00a.", "RecursionError"),  # a list that holds itself
    ],
)
def test_damaged_or_crafted_pickles(tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        safe_pickle.load(write(tmp_path, content))


def test_structured_arrays_are_refused(tmp_path):
    content = pickle.dumps(np.zeros(2, [("x", "u1"), ("y", "f4")]))
    with pytest.raises(DataError, match="not plain data"):
        safe_pickle.load(write(tmp_path, content))


@pytest.mark.parametrize("fields", [b"K\x01NN", b"NK\x01N", b"NNK\x01"])
def test_types_that_turn_out_to_have_fields_are_refused(tmp_path, fields):
    content = python2_pickle(np.zeros((1, 2), np.uint8), [0])
    assert content.count(b"|NNN") == 1
    with pytest.raises(DataError, match="structured arrays are not plain data"):
        safe_pickle.load(write(tmp_path, content.replace(b"|NNN", b"|" + fields)))


def test_wrong_length(tmp_path):
    content = pickle.dumps(np.zeros(4, np.uint8), protocol=5).replace(b"K\x04\x85", b"K\x03\x85")
    with pytest.raises(DataError, match="array of 3 bytes in 4 bytes"):
        safe_pickle.load(write(tmp_path, content))


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"cannot read .*nowhere\.pickle"):
        safe_pickle.load(tmp_path / "nowhere.pickle")


def test_what_is_shared_stays_shared(tmp_path):
    """So that a small pickle of lists of the same lists does not fill the memory."""
    value = [0]
    for _ in range(100):
        value = [value, (value, {"same": value})]
    loaded = safe_pickle.load(write(tmp_path, pickle.dumps(value)))
    assert loaded[0] is loaded[1][0] is loaded[1][1]["same"]
