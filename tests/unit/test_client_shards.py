"""What an offline run finds in folders, Parquet files and tar archives, damage included."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from clients import shards
from clients.errors import SourceError

COUNT = 30


def archive(names: list[str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as made:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 700
            made.addfile(info, io.BytesIO(name.encode().ljust(700)))
    return stream.getvalue()


@pytest.fixture(scope="module")
def whole() -> bytes:
    return archive([f"{number:02}.jpg" for number in range(COUNT)])


def read(path: Path, content: bytes) -> tuple[list[str], str]:
    """The pictures of an archive, and what is said after them."""
    path.write_bytes(content)
    names = []
    try:
        for name, load in shards.Tar(str(path)).pictures():
            names.append(Path(name).name)
            assert load() == names[-1].encode().ljust(700)
    except SourceError as error:
        return names, str(error)
    return names, ""


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


HEADER = 15 * 3 * 512
"""Where that of the 16th member begins: each has one block of header and two of content."""


@pytest.mark.parametrize("place", [0, 100, 124, 150])
def test_a_damaged_header_is_an_error_after_what_is_before_it(
    tmp_path: Path, whole: bytes, place: int
) -> None:
    for suffix, pack in ((".tar", bytes), (".tgz", gzip.compress)):
        names, error = read(tmp_path / f"a{suffix}", pack(flipped(whole, HEADER + place)))
        assert len(names) == 15
        assert error == f"{tmp_path}/a{suffix}: no whole tar archive: bad checksum at byte {HEADER}"


@pytest.mark.parametrize("cut", [HEADER + 100, HEADER + 600])
def test_a_cut_archive_is_an_error(tmp_path: Path, whole: bytes, cut: int) -> None:
    names, error = read(tmp_path / "a.tar", whole[:cut])
    assert len(names) == 15
    assert "no whole tar archive" in error


def test_archives_in_a_row_are_read_to_the_end(tmp_path: Path, whole: bytes) -> None:
    assert whole.endswith(bytes(1024))
    for suffix, pack in ((".tar", bytes), (".tgz", gzip.compress)):
        names, error = read(tmp_path / f"a{suffix}", pack(whole) + pack(whole))
        assert (len(names), error) == (2 * COUNT, "")
        names, error = read(tmp_path / f"a{suffix}", pack(whole) + pack(flipped(whole, HEADER)))
        assert len(names) == COUNT + 15
        assert "bad checksum" in error


@pytest.mark.parametrize(
    "content", [b"", b"text" * 1000, gzip.compress(bytes(5000), mtime=0)[:-9]], ids=["empty", "text", "cut"]
)
def test_what_is_no_archive_is_one_line(tmp_path: Path, content: bytes) -> None:
    names, error = read(tmp_path / "a.tar", content)
    assert names == []
    assert error.startswith(f"{tmp_path}/a.tar: no whole tar archive: ")
    assert "method" not in error


def test_what_macos_puts_into_archives_is_no_picture(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tar", archive(["._b.jpg", "b.jpg", "c/._d.jpg"])) == (["b.jpg"], "")


def find(*words: object) -> tuple[list[str], list[str]]:
    """The names in all shards of pictures, and the notes."""
    notes: list[str] = []
    listing = shards.find(map(str, words), column="image", size=100, note=notes.append)
    return [name for shard in listing.shards for name, _ in shard.pictures()], notes


def test_a_folder_with_what_cannot_be_taken(tmp_path: Path) -> None:
    """As phones and disks leave them; one of these is no reason to refuse the others."""
    for name in ("a.jpg", "._a.jpg", "._b.tar", "live.mp4", "more.MOV"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    expected = [str(tmp_path / name) for name in ("a.jpg", "gone.jpg", "loop.jpg")]
    names, notes = find(tmp_path)
    assert names == expected
    assert notes[-1] == f"{tmp_path}: not taken: 2 video(s)"
    assert find(tmp_path / "*.[jmM]*") == (expected, [f"{tmp_path}/*.[jmM]*: not taken: 2 video(s)"])
    (shard,) = shards.find([str(tmp_path)], column="image", size=100, note=notes.append).shards
    loads = dict(shard.pictures())
    for name, message in (("gone.jpg", "no such file"), ("loop.jpg", "symbolic links")):
        with pytest.raises(SourceError, match=message):
            loads[str(tmp_path / name)]()


@pytest.mark.parametrize("name", ["live.mp4", "gone.jpg", "loop.jpg"])
def test_what_is_named_itself_is_misuse(tmp_path: Path, name: str) -> None:
    (tmp_path / "live.mp4").touch()
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    with pytest.raises(shards.InputError, match=r"found no file of pictures|a link that leads nowhere"):
        find(tmp_path / name)


def test_a_column_that_is_there_twice(tmp_path: Path) -> None:
    column = pyarrow.array([b"x"], pyarrow.binary())
    parquet.write_table(pyarrow.table([column, column], names=["image", "image"]), tmp_path / "a.parquet")
    with pytest.raises(shards.InputError, match="has 2 columns 'image', found image, image: name"):
        find(tmp_path / "a.parquet")
