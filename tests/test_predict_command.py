"""The verb predict: a folder of pictures in, probabilities out, and mistakes in one line."""

import csv
import errno
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maml_jax
from maml_jax import cli
from maml_jax.data import pictures
from maml_jax.errors import DataError
from tests.helpers import pixels
from tests.models import save_run


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    save_run(folder / "run", model__head="zero", inner__encoder_rate=0.05, inner__head_rate=0.05, eval__steps=5)
    maml_jax.models.weights.export(folder / "run", folder / "model")
    return folder / "model"


@pytest.fixture
def launch(cache, monkeypatch, capsys, tmp_path, exported):
    monkeypatch.setenv("MAML_JAX_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, weights=exported):
        status = cli.main(["predict", "--weights", str(weights), *(str(a) for a in arguments)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def picture(which, noise):
    """A picture of class `which`, of 16 px, grey."""
    return pixels(100 + which, shape=(16, 16)) // 2 + pixels(noise, shape=(16, 16)) // 8


@pytest.fixture
def letters(tmp_path):
    """Class folders with uneven shots, and a folder to ask about, with the truth in the names."""
    for which, (name, shots) in enumerate({"alpha": 3, "beta": 2, "gamma": 4}.items()):
        for folder, count in (("support", shots), ("query", 2)):
            place = tmp_path / folder / name
            place.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(picture(which, 10 * which + i + 500 * (folder == "query"))).save(place / f"{i}.png")
    return tmp_path


def test_json(launch, letters):
    status, out, err = launch("--support", "support", "--query", "query", "--output", "json")
    assert status == 0
    rows = json.loads(out)
    assert [row["file"] for row in rows] == [
        f"query/{name}/{i}.png" for name in ("alpha", "beta", "gamma") for i in (0, 1)
    ]
    for row in rows:
        assert row["class"] == row["file"].split("/")[1]
        assert list(row) == ["file", "class", "probability", "probabilities"]
        values = list(row["probabilities"].values())
        assert values == sorted(values, reverse=True)
        assert row["probability"] == values[0] == row["probabilities"][row["class"]]
        np.testing.assert_allclose(sum(values), 1, rtol=1e-5)
    assert "3 classes: alpha (3), beta (2), gamma (4)" in err
    assert "inductive" in err
    assert "support loss 1.0986 before adaptation" in err
    assert "9 of 9 pictures" in err


def test_table_and_csv(launch, letters):
    status, out, _ = launch("--support", "support", "--query", "query/alpha", "query/beta/1.png")
    lines = out.splitlines()
    assert status == 0
    assert len(lines) == 3
    assert lines[2].startswith("query/beta/1.png   beta ")
    status, out, _ = launch("--support", "support", "--query", "query/*/0.png", "--output=csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["class"] for row in rows] == ["alpha", "beta", "gamma"]
    assert list(rows[0]) == ["file", "class", "probability", "alpha", "beta", "gamma"]
    assert rows[0]["probability"] == rows[0]["alpha"]


def test_transductive_warns(launch, letters):
    status, out, err = launch("--support", "support", "--query", "query", "--transductive")
    assert status == 0
    assert len(out.splitlines()) == 6
    assert "warning: transductive" in err


def test_steps_and_what_transductive_changes_nothing_of(launch, letters, tmp_path):
    save_run(tmp_path / "run", model__norm="metabn")
    asked = ["--support", "support", "--query", "query", "--steps", "3", "--transductive"]
    status, _, err = launch(*asked, weights=tmp_path / "run")
    assert status == 0
    assert "note: the model was not trained transductively; --transductive changes nothing" in err
    assert launch(*asked[:-2], "0", weights=tmp_path / "run")[1] != launch(*asked[:-1], weights=tmp_path / "run")[1]


def test_ink_on_paper(launch, letters):
    _, plain, err = launch("--support", "support", "--query", "query", "--output", "json")
    assert "note" not in err
    for path in letters.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    assert "try --paper if they are photographs" in launch("--support", "support", "--query", "query")[2]
    status, inverted, err = launch("--support", "support", "--query", "query", "--output", "json", "--invert")
    assert status == 0
    assert inverted == plain
    assert "note" not in err


def test_pictures_of_every_kind(launch, letters):
    """All show the same, and so are of the same class with the same probability, to what a format loses."""
    grey = np.kron(picture(1, 77), np.ones((4, 4), np.uint8))
    image, folder = Image.fromarray(grey), letters / "kinds"
    folder.mkdir()
    image.save(folder / "grey.png")
    image.convert("RGB").save(folder / "colour.bmp")
    image.convert("P").save(folder / "palette.gif")
    image.convert("RGB").convert("CMYK").save(folder / "cmyk.tif")
    image.resize((200, 120)).save(folder / "large.webp", lossless=True)
    image.convert("RGB").save(folder / "photograph.JPG", quality=98)
    Image.fromarray(grey.astype(np.uint16) * 257).save(folder / "sixteen.png")
    turned, exif = image.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    turned.save(folder / "turned.jpeg", exif=exif, quality=98)
    on_white = image.convert("LA")
    on_white.putalpha(Image.fromarray(255 - grey))
    Image.fromarray(np.dstack([np.zeros_like(grey), 255 - grey])).save(folder / "transparent.png")
    status, out, err = launch("--support", "support", "--query", "kinds", "--output", "json")
    assert status == 0, err
    rows = {row["file"]: row for row in json.loads(out)}
    assert len(rows) == 9
    for name, row in rows.items():
        assert row["class"] == "beta", name
        assert abs(row["probability"] - rows["kinds/grey.png"]["probability"]) < 0.05, name


def test_unreadable_files_are_named_and_left_out(launch, letters):
    (letters / "query" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    (letters / "query" / "notes.txt").write_text("no picture")
    (letters / "support" / "beta" / "broken.jpg").write_bytes(b"")
    status, out, err = launch("--support", "support", "--query", "query", "--output", "json")
    assert status == 0
    assert len(json.loads(out)) == 6
    assert "left out: cannot read the image query/broken.png" in err
    assert "left out: cannot read the image support/beta/broken.jpg" in err
    assert "beta (2)" in err
    status, out, err = launch("--support", "support", "--query", "query/broken.png")
    assert status == 2
    assert out == ""
    assert "none of the query's files could be read" in err


def test_query_in_the_support_is_told(launch, letters):
    _, _, err = launch("--support", "support", "--query", "support/alpha", "query")
    assert "3 of the query's files are in the support set, too" in err


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f / "support"), "support is not there"),
        (lambda f: [shutil.rmtree(f / "support" / name) for name in ("alpha", "beta")], "a single class, 'gamma'"),
        (lambda f: [path.unlink() for path in f.glob("support/beta/*")], "has no images of beta"),
        (lambda f: [shutil.rmtree(path) for path in f.glob("support/*")], "support has no folders"),
        (
            lambda f: (
                [shutil.move(f / "support/alpha/0.png", f), shutil.rmtree(f / "support"), (f / "support").mkdir()]
                and shutil.move(f / "0.png", f / "support")
            ),
            "support has images, but no folders: the images of each class belong in a folder of its own",
        ),
        (lambda f: [path.write_bytes(b"") for path in f.glob("support/beta/*")], "none of the images of class 'beta'"),
        (lambda f: shutil.rmtree(f / "query"), "there is no query"),
        (lambda f: [path.unlink() for path in f.glob("query/*/*")], "query has no images"),
    ],
)
def test_wrong_layouts_are_one_clear_line(launch, letters, spoil, message):
    spoil(letters)
    status, out, err = launch("--support", "support", "--query", "query")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert (status, out, len(errors)) == (2, "", 1)
    assert message in errors[0]


def test_a_support_folder_that_cannot_be_listed(launch, letters, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot list support: Permission denied"):
        pictures.class_pictures(Path("support"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--query", "query"], "--support"),
        (["--support", "support"], "--query"),
        (["--support", "support", "--query"], "--query: expected at least one argument"),
        (["--support", "support", "--query", "nothing/*.png"], "nothing/*.png fits no file"),
        (["--support", "support", "--query", "query", "--output", "xml"], "invalid choice"),
        (["--support", "support", "--query", "query", "--steps", "many"], "'many' is no number of steps"),
        (["--support", "support", "--query", "query", "--weights", "nowhere"], "no trained model 'nowhere'"),
    ],
)
def test_wrong_arguments_are_one_clear_line(launch, letters, arguments, message):
    status, out, err = launch(*arguments)
    assert (status, out) == (2, "")
    assert err.count("error: ") == 1
    assert message in err
