"""Images as a viewer shows them, and as grey or colour as is asked for."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from maml_jax import data
from maml_jax.data import folder, pixels, store
from maml_jax.data.images import Look
from maml_jax.errors import ConfigError, DataError

INK = np.zeros((8, 8), bool)
INK[2:4, 1:7] = True


def encode(image, kind="PNG", **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def decode(content, mode="RGB", **options):
    return np.asarray(pixels.decode(content, mode, "x.png", **options))


def inked(mode):
    """Black ink, on transparency where the mode has it."""
    if mode in ("RGBA", "LA"):
        image = Image.fromarray(np.where(INK, 255, 0).astype(np.uint8))
        black = Image.new("L", image.size, 0)
        return Image.merge(mode, [*[black] * (len(mode) - 1), image])
    image = Image.fromarray(np.where(INK, 1, 0).astype(np.uint8), "P" if mode == "P" else None)
    if mode == "P":
        image.putpalette([0, 0, 0] * 2)
    return image


TRANSPARENT = {
    "RGBA": encode(inked("RGBA")),
    "LA": encode(inked("LA")),
    "palette of bytes": encode(inked("P"), transparency=bytes([0, 255])),
    "palette of one": encode(inked("P"), transparency=0),
    "GIF": encode(inked("P"), "GIF", transparency=0),
    "WebP": encode(inked("RGBA"), "WEBP", lossless=True),
    "TIFF": encode(inked("RGBA"), "TIFF"),
    "grey key": encode(Image.fromarray(np.where(INK, 0, 9).astype(np.uint8)), transparency=9),
    "colour key": encode(
        Image.fromarray(np.where(INK[..., None], 0, [1, 2, 3]).astype(np.uint8)), transparency=(1, 2, 3)
    ),
}


@pytest.mark.parametrize("form", TRANSPARENT)
def test_transparency_is_laid_on_the_background(form):
    remarks = []
    np.testing.assert_array_equal(decode(TRANSPARENT[form], "L", remark=remarks.append), np.where(INK, 0, 255))
    assert remarks == ["transparent images, laid on the background"]
    red = decode(TRANSPARENT[form], background=(200, 10, 30))
    np.testing.assert_array_equal(red, np.where(INK[..., None], 0, [200, 10, 30]))


def test_half_transparent():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    np.testing.assert_allclose(decode(encode(image))[0, 0], [255, 127, 127], atol=1)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_opaque_images_keep_their_pixels(mode):
    remarks = []
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, len(mode)), np.uint8), mode)
    image.putalpha(255)
    expected = np.asarray(image)[..., :-1]
    np.testing.assert_array_equal(decode(encode(image), remark=remarks.append), np.broadcast_to(expected, (6, 6, 3)))
    assert not remarks


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(orientation, kind):
    shown = Image.fromarray(np.repeat(np.repeat(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, 8, 0), 8, 1))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # what a camera stored, by Image.Transpose
    stored = shown.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else shown
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
    found = decode(encode(stored.convert("RGB"), kind, exif=exif, **options), "L")
    np.testing.assert_allclose(found.astype(int), np.asarray(shown), atol=4)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_unreadable_exif_data_are_passed_over():
    image = Image.new("RGB", (8, 8), (10, 20, 30))
    content = encode(image, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\xff" * 40)
    assert decode(content).shape == (8, 8, 3)


def test_exif_data_that_make_pillow_raise_are_passed_over(monkeypatch):
    content = encode(Image.new("RGB", (8, 8), (10, 20, 30)), "JPEG")
    monkeypatch.setattr(Image.Image, "getexif", lambda image: struct.unpack("<I", b"x"))
    assert decode(content).shape == (8, 8, 3)


def test_what_is_no_image_is_not_grey():
    assert pixels.is_grey(encode(Image.new("L", (8, 8))))
    assert not pixels.is_grey(b"GIF89a")


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_colours_multiplied_by_their_alpha(mode):
    """As TIFF may have them, which says so. Grey ones are refused where Pillow does not know them, as up to 12.0."""
    plain = Image.merge(mode, [Image.new("L", (8, 8), grey) for grey in (200, 100, 40, 128)[-len(mode) :]])
    multiplied = Image.frombytes(mode, (8, 8), plain.convert({"LA": "La", "RGBA": "RGBa"}[mode]).tobytes())
    tag = struct.Struct("<HHIHH")  # ExtraSamples: 2 for alpha by itself, 1 for alpha that colours are multiplied by
    content = encode(multiplied, "TIFF").replace(tag.pack(338, 3, 1, 2, 0), tag.pack(338, 3, 1, 1, 0))
    try:
        assert Image.open(io.BytesIO(content)).tag_v2[338] == (1,)
    except Image.UnidentifiedImageError:
        with pytest.raises(DataError, match=r"cannot read the image x\.png: it is none of"):
            decode(content)
        assert mode == "LA"
        return
    np.testing.assert_allclose(decode(content).astype(int), decode(encode(plain)), atol=2)


@pytest.mark.parametrize(
    ("array", "kind", "expected", "said"),
    [
        (np.array([[0, 257, 40_000, 65_535]], np.uint16), "PNG", [0, 1, 156, 255], "16 bits"),
        (np.array([[0, 257, 40_000, 65_535]], np.uint16), "TIFF", [0, 1, 156, 255], "16 bits"),
        (np.array([[0, 257, 40_000, 65_535]], np.uint16), "PPM", [0, 1, 156, 255], "16 bits"),
        (np.array([[0, 257, 40_000, 65_535]], np.int32), "TIFF", [0, 1, 156, 255], "16 bits"),
        (np.array([[0, 0.5, 0.25, 1]], np.float32), "TIFF", [0, 128, 64, 255], "scaled from [0, 1]"),
        (np.array([[0, 0.5, 99.6, 255]], np.float32), "TIFF", [0, 0, 100, 255], "taken to be in [0, 255]"),
    ],
)
def test_more_than_eight_bits(array, kind, expected, said):
    remarks = []
    found = decode(encode(Image.fromarray(array), kind), "L", remark=remarks.append)
    np.testing.assert_array_equal(found, [expected])
    assert len(remarks) == 1
    assert said in remarks[0]


@pytest.mark.parametrize(
    "array",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 70_000]], np.int32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0, 4000]], np.float32),
    ],
)
def test_numbers_without_a_known_meaning(array):
    with pytest.raises(DataError, match=r"cannot read the image x\.png: its values are .* expected "):
        decode(encode(Image.fromarray(array), "TIFF"))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_is_converted_as_pillow_does(kind):
    array = np.random.default_rng(0).integers(0, 256, (2, 2, 4), np.uint8).repeat(8, 0).repeat(8, 1)
    content = encode(Image.fromarray(array, "CMYK"), kind)
    np.testing.assert_array_equal(decode(content), np.asarray(Image.open(io.BytesIO(content)).convert("RGB")))


def test_the_first_of_several_frames():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    remarks = []
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(content, remark=remarks.append)[0, 0], [255, 0, 0])
    assert remarks == ["images of several frames, of which the first is taken"]


GREY = {
    "L": Image.new("L", (8, 8), 70),
    "1": Image.new("1", (8, 8), 1),
    "LA": Image.new("LA", (8, 8), (70, 100)),
    "I;16": Image.fromarray(np.full((8, 8), 9999, np.uint16)),
    "P": Image.new("L", (8, 8), 70).convert("P"),
}
COLOURED = {
    "RGB": Image.new("RGB", (8, 8), (70, 70, 70)),
    "RGBA": Image.new("RGBA", (8, 8), (70, 70, 70, 255)),
    "P": Image.new("RGB", (8, 8), (70, 90, 70)).convert("P"),
}


def write(root, images):
    for split in ("train", "test"):
        for c in range(2):
            (root / split / f"{split}{c}").mkdir(parents=True)
            for i, image in enumerate(images):
                image.save(root / split / f"{split}{c}" / f"{i}.png")
    return root


@pytest.mark.parametrize("form", GREY)
def test_grey_folders_are_grey(tmp_path, form):
    root = write(tmp_path / "raw", [GREY["L"], GREY[form]])
    source = folder.source(root, Look(8, 0))
    path = store.build(source, tmp_path / "cache", progress=False)
    assert store.open_store(path, "train").image_shape == (8, 8, 1)
    assert store.folder_of(folder.source(root, Look(8, 0)), tmp_path / "cache") == path


@pytest.mark.parametrize("form", COLOURED)
def test_one_image_in_colour_makes_all_colour(tmp_path, form):
    root = write(tmp_path / "raw", [GREY["L"], COLOURED[form], GREY["LA"]])
    path = store.build(folder.source(root, Look(8, 0)), tmp_path / "cache", progress=False)
    assert store.open_store(path, "train").image_shape == (8, 8, 3)


@pytest.mark.parametrize("images", [list(GREY.values()), list(COLOURED.values())])
@pytest.mark.parametrize("channels", [1, 3, "1", "3"])
def test_channels_asked_for(tmp_path, images, channels):
    root = write(tmp_path / "raw", images)
    settings = data.DataSettings("folder", str(root), cache_dir=str(tmp_path), image_size=8, channels=channels)
    report = data.prepare(settings, progress=False)
    assert report["image_shape"] == [8, 8, int(channels)]


@pytest.mark.parametrize(("name", "channels"), [("glyphs", 3), ("glyphs", 1), ("glyphs", "auto")])
def test_channels_of_other_data_sets(tmp_path, monkeypatch, name, channels):
    source = data.make_source(data.DataSettings(name, image_size=8, channels=channels))
    images = source.splits["val"][0].read(source.shape())
    assert images.shape[-1] == (3 if channels == 3 else 1)
    own = data.make_source(data.DataSettings(name, image_size=8))
    assert (source.digest() == own.digest()) == (channels != 3)
    np.testing.assert_array_equal(images[..., :1], own.splits["val"][0].load())


def test_grey_of_colour_is_pillows():
    from maml_jax.data.dataset import _to_grey

    array = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    expected = [np.asarray(Image.fromarray(image).convert("L")) for image in array]
    np.testing.assert_array_equal(_to_grey(array)[..., 0], expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("white", (255,) * 3), ("black", (0,) * 3), ("#80ff00", (128, 255, 0)), ("80ff00", (128, 255, 0))],
)
def test_background(name, expected):
    assert pixels.color(name) == expected


@pytest.mark.parametrize(
    "changes", [{"background": "nowhere"}, {"background": "#ff000080"}, {"background": ""}, {"channels": 4}]
)
def test_unusable_settings(tmp_path, changes):
    root = write(tmp_path, [GREY["L"]])
    with pytest.raises(ConfigError, match=rf"data\.{next(iter(changes))} is "):
        data.make_source(data.DataSettings("folder", str(root), **changes), progress=False)


def test_what_was_changed_is_noted(tmp_path):
    root = write(tmp_path / "raw", [GREY["L"], GREY["I;16"], inked("RGBA")])
    settings = data.DataSettings("folder", str(root), cache_dir=str(tmp_path), image_size=8, background="black")
    report = data.prepare(settings, progress=False)
    assert {reason: entry["count"] for reason, entry in report["notes"].items()} == {
        "images of 16 bits, scaled by 255 / 65535": 4,
        "transparent images, laid on the background": 4,
    }
    assert data.prepare(settings, progress=False, check=True) == report
    other = data.make_source(data.DataSettings("folder", str(root), image_size=8))
    assert other.digest() not in report["path"]
