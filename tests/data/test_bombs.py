"""Files that claim to be enormous: refused before they take the memory."""

import io

from PIL import Image

from tests.data import test_folder


def test_png_bomb(prepare, tmp_path):
    """An image that claims to be enormous is refused before it takes the memory."""
    root = test_folder.write_classes(tmp_path / "raw")
    header = io.BytesIO()
    Image.new("1", (1, 1)).save(header, "PNG")
    bomb = bytearray(header.getvalue())
    bomb[16:24] = (60000).to_bytes(4, "big") * 2
    (root / "bee" / "bee0.png").write_bytes(bomb)
    status, _, err = prepare("folder", 16)
    assert status == 2
    assert "cannot read the image bee/bee0.png" in err
