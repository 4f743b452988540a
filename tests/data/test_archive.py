import bz2
import errno
import gzip
import io
import os
import tarfile
import zipfile

import pytest

from maml_jax.data.archive import open_tree
from maml_jax.errors import DataError

FILES = {"a/1.png": b"one" * 300, "a/b/2.JPG": b"two" * 300, "list.csv": b"1.png,a\n"}
JUNK = {"a/.DS_Store": b"x", ".git/config": b"x", "__MACOSX/a/._1.png": b"x", "a/Thumbs.db": b"x"}


def write_folder(path, files=FILES):
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def write_zip(path, files=FILES):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files=FILES):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, body in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    compress = {".tar": bytes, ".gz": gzip.compress, ".tgz": gzip.compress, ".bz2": bz2.compress}[path.suffix]
    path.write_bytes(compress(content.getvalue()))
    return path


FORMS = {"x": write_folder, "x.zip": write_zip, "x.tar": write_tar, "x.tar.gz": write_tar, "x.tar.bz2": write_tar}


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_read_alike(tmp_path, name):
    tree = open_tree(FORMS[name](tmp_path / name, {**FILES, **JUNK}))
    assert [member for member in tree.members if not member.endswith("/")] == sorted(FILES)
    assert {member: tree.read(member) for member in FILES} == FILES
    with pytest.raises(DataError, match=rf"cannot read .*{name}"):
        tree.read("nothing.png")


def test_empty_folders_are_members(tmp_path):
    (tmp_path / "x" / "empty").mkdir(parents=True)
    assert open_tree(tmp_path / "x").members == ["empty/"]


def test_stamps(tmp_path):
    folder = write_folder(tmp_path / "x")
    before = open_tree(folder).stamp()
    assert open_tree(folder).stamp() == before
    (folder / "a" / "Thumbs.db").write_bytes(b"x")
    assert open_tree(folder).stamp() == before
    (folder / "a" / "1.png").write_bytes(b"other")
    assert open_tree(folder).stamp() != before


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tar.bz2"])
@pytest.mark.parametrize("keep", [0.0, 0.2, 0.5, 0.9])
def test_truncated_archives(tmp_path, name, keep):
    path = FORMS[name](tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content.rstrip(b"\0")))])
    with pytest.raises(DataError, match=rf"cannot read .*{name}: .+; download it again"):
        _ = open_tree(path).members


def test_a_tar_file_whose_last_member_claims_more_than_there_is(tmp_path):
    path = write_tar(tmp_path / "x.tar", {"a/1.png": b"x"})
    content = bytearray(path.read_bytes())
    member = tarfile.TarInfo("a/1.png")
    member.size = 10**6
    content[:512] = member.tobuf(tarfile.USTAR_FORMAT)
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"cannot read .*x\.tar: .*; download it again"):
        open_tree(path).read("a/1.png")


def test_archive_cannot_write_elsewhere(tmp_path):
    folder = tmp_path / "deep" / "er"
    folder.mkdir(parents=True)
    for name in ("x.zip", "x.tar.gz"):
        tree = open_tree(FORMS[name](folder / name, {"../../evil.png": b"x", "/tmp/evil/1.png": b"x"}))
        assert [member for member in tree.members if not member.endswith("/")] == ["tmp/evil/1.png"]
        assert tree.left_out == {"paths that lead outside": ["../../evil.png"]}
        for member in tree.members:
            tree.read(member)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["deep", "er", "x.tar.gz", "x.zip"]


def test_a_path_that_comes_twice(tmp_path):
    for name in ("x.zip", "x.tar"):
        tree = open_tree(FORMS[name](tmp_path / name, {"a/1.png": b"first", "./a/1.png": b"second"}))
        assert tree.read("a/1.png") == b"first"
        assert tree.left_out == {"files whose path comes twice in the archive": ["a/1.png"]}


def test_a_folder_that_cannot_be_listed(tmp_path, monkeypatch):
    tree = open_tree(write_folder(tmp_path / "x"))
    scan = os.scandir

    def refuse(path):
        if str(path).rstrip("/").endswith("b"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"cannot list .*x: .*Permission denied"):
        _ = tree.members


def test_neither_folder_nor_archive(tmp_path):
    (tmp_path / "x.rar").touch()
    for name in ("x.rar", "nowhere"):
        with pytest.raises(DataError, match=rf"{name} is neither a folder nor an archive"):
            open_tree(tmp_path / name)
