"""Files appear whole, and those that belong together appear together."""

import pytest

from export.errors import ExportError
from export.files import sha256, write_beside, write_together


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


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")
