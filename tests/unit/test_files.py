"""Files appear whole, and those that belong together appear together."""

import os
from pathlib import Path

import pytest

from export.errors import ExportError
from export.files import make_folder, sha256, write_beside, write_together


def test_all_or_none(tmp_path):
    network, description = tmp_path / "model.onnx", tmp_path / "model.json"
    write_together({network: b"1", description: b"one"})
    with pytest.raises(ExportError, match=f"{tmp_path}/none/model.json: cannot be written: No such file"):
        write_together({network: b"2", tmp_path / "none/model.json": b"two"})
    assert (network.read_bytes(), description.read_bytes()) == (b"1", b"one")
    write_together({network: b"2", description: b"two"})
    assert (network.read_bytes(), description.read_bytes()) == (b"2", b"two")
    assert sorted(tmp_path.iterdir()) == [description, network]


def test_a_folder_in_the_way(tmp_path):
    with pytest.raises(ExportError, match="cannot be written: Is a directory"):
        write_beside(tmp_path, b"")
    assert not list(tmp_path.parent.glob(f".{tmp_path.name}.*"))


def test_a_folder_in_the_place_of_one_leaves_all_as_it_was(tmp_path):
    (tmp_path / "model.json").mkdir()
    with pytest.raises(ExportError, match=r"model\.json: cannot be written: Is a directory"):
        write_together({tmp_path / "model.plan": b"plan", tmp_path / "model.json": b"{}"})
    assert [path.name for path in tmp_path.iterdir()] == ["model.json"]


def test_processes_of_one_number_do_not_share_a_temporary_file(tmp_path, monkeypatch):
    """As in two containers; the second writes while the first one's file waits for its name."""
    replace = Path.replace

    def replace_late(temporary, path):
        monkeypatch.setattr(Path, "replace", replace)
        write_beside(path, b"second")
        return replace(temporary, path)

    monkeypatch.setattr(Path, "replace", replace_late)
    write_beside(tmp_path / "model.plan", b"first")
    assert (tmp_path / "model.plan").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["model.plan"]


def test_the_umask_decides_who_reads(tmp_path):
    before = os.umask(0o027)
    try:
        write_beside(tmp_path / "model.plan", b"plan")
    finally:
        os.umask(before)
    assert (tmp_path / "model.plan").stat().st_mode & 0o777 == 0o640


def test_a_folder_that_cannot_be_made(tmp_path):
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "a", tmp_path / "file", Path("/proc/none")):
        with pytest.raises(ExportError, match=f"{folder}: cannot be made: "):
            make_folder(folder)


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
