"""Where the clients' pictures come from."""

import io
import os
import socket
from pathlib import Path

import clips
import cv2
import numpy as np
import pytest

from clients import sources
from clients.errors import SourceError
from clients.sources import Picture, Video


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    for name in ("b.jpg", "a.PNG", "notes.txt", "deep/c.png", "deep/er/d.jpg", "clip.MP4", "odd[1].png"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def names(found: list[Picture | Video], folder: Path) -> list[str]:
    return [str(Path(source.name).relative_to(folder)) for source in found]


def test_a_folder_is_its_pictures_and_videos_sorted(folder: Path) -> None:
    found = list(sources.find([str(folder)]))
    assert names(found, folder) == ["a.PNG", "b.jpg", "clip.MP4", "odd[1].png"]
    assert [type(source) for source in found] == [Picture, Picture, Video, Picture]


def test_what_a_folder_has_beside_them_is_one_line(folder: Path) -> None:
    (folder / "more.txt").touch()
    (folder / ".hidden").touch()
    (folder / "README").touch()
    lines: list[str] = []
    assert (
        len(list(sources.find([str(folder), str(folder / "deep"), str(folder / "a.PNG")], lines.append))) == 6
    )
    assert lines == [
        f"{folder}: not taken: 5 (2 folder(s), 2 .txt, 1 no suffix)",
        f"{folder / 'deep'}: not taken: 1 (1 folder(s))",
    ]
    (folder / "empty" / "a.doc").touch()
    (nothing,) = sources.find([str(folder / "empty")], lines.append)
    with pytest.raises(SourceError, match=r"no pictures or videos in this folder, found 1 \.doc, expected"):
        nothing.read()  # type: ignore[union-attr]
    assert len(lines) == 2


def test_of_a_folder_only_files_are_taken(tmp_path: Path) -> None:
    """Links to files, too; one that leads nowhere is an error. What macOS adds is not worth a word."""
    for name in ("a.jpg", "._a.jpg", "._clip.mp4"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    for name in ("pipe.jpg", "pipe.mp4"):
        os.mkfifo(tmp_path / name)
    lines: list[str] = []
    for word in (tmp_path, tmp_path / "*"):
        found = list(sources.find([str(word)], lines.append))
        assert names(found, tmp_path) == ["a.jpg", "b.jpg", "gone.jpg", "loop.jpg"]
        assert [found[place].read() for place in (0, 1)] == [b"a.jpg"] * 2  # type: ignore[union-attr]
        for place in (2, 3):
            with pytest.raises(SourceError, match=r"no such file|symbolic links"):
                found[place].read()  # type: ignore[union-attr]
    assert lines == [f"{tmp_path}: not taken: 2 (2 pipe(s) or device(s))"]


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    for found in sources.find([str(tmp_path / "loop.jpg"), str(tmp_path / "gone.jpg")]):
        with pytest.raises(SourceError, match=r"^found a link that leads nowhere, expected a file$"):
            found.read()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kind", "suffixes"),
    [
        (
            Picture,
            "jpg JPG jpeg jfif jpe jif pjpeg png apng gif bmp dib webp tif tiff avif heic heif pgm ppm pbm",
        ),
        (Video, "mp4 MTS m2ts ts flv 3gp 3g2 wmv asf mpg mpeg vob webm mkv avi mov qt m4v ogv f4v mxf"),
    ],
)
def test_suffixes_are_what_they_are(tmp_path: Path, kind: type, suffixes: str) -> None:
    for suffix in suffixes.split():
        (tmp_path / f"a.{suffix}").touch()
    found = list(sources.find([str(tmp_path)]))
    assert len(found) == len(suffixes.split())
    assert {type(source) for source in found} == {kind}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    for name in (b"caf\xe9.png", b"caf\xe9/deep.jpg"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(name)
    words = [
        str(tmp_path),
        str(tmp_path / os.fsdecode(b"caf\xe9.png")),
        str(tmp_path / os.fsdecode(b"caf\xe9")),
    ]
    found = [*sources.find(words), *sources.find([str(tmp_path / "**/*.jpg"), "a\0b.png"])]
    assert [source.read() for source in found[:-1]] == [  # type: ignore[union-attr]
        b"caf\xe9.png",
        b"caf\xe9.png",
        b"caf\xe9/deep.jpg",
        b"caf\xe9/deep.jpg",
    ]
    with pytest.raises(SourceError):
        found[-1].read()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jpg", ["b.jpg"]),
        ("**/*.jpg", ["b.jpg", "deep/er/d.jpg"]),
        ("deep/?.png", ["deep/c.png"]),
        ("[ab].*", ["a.PNG", "b.jpg"]),
    ],
)
def test_patterns(folder: Path, pattern: str, expected: list[str]) -> None:
    assert names(list(sources.find([str(folder / pattern)])), folder) == expected


def test_a_patterns_drawings_keep_their_folders(folder: Path) -> None:
    found = list(sources.find([str(folder / "**/*.jpg")]))
    assert [str(source.relative) for source in found] == ["b.jpg", "deep/er/d.jpg"]


def test_a_file_whose_name_looks_like_a_pattern(folder: Path) -> None:
    (found,) = sources.find([str(folder / "odd[1].png")])
    assert isinstance(found, Picture)
    assert found.read() == b"odd[1].png"


def test_words_keep_their_order(folder: Path) -> None:
    words = [str(folder / "b.jpg"), str(folder / "deep"), str(folder / "a.PNG")]
    assert names(list(sources.find(words)), folder) == ["b.jpg", "deep/c.png", "a.PNG"]


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("nothing.png", "no such file"),
        ("*.gif", "no such file"),
        ("empty", "no pictures"),
        ("**.jpg", "Invalid pattern"),
        ("x" * 300, "File name too long"),
    ],
)
def test_what_is_not_there_says_so_when_it_is_read(folder: Path, word: str, message: str) -> None:
    found, good = sources.find([str(folder / word), str(folder / "b.jpg")])
    assert isinstance(found, Picture)
    assert found.name == str(folder / word)
    with pytest.raises(SourceError, match=message):
        found.read()
    assert good.read() == b"b.jpg"  # type: ignore[union-attr]


def test_an_empty_word_is_not_the_current_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (found,) = sources.find([""])
    with pytest.raises(SourceError, match="empty name"):
        found.read()  # type: ignore[union-attr]


def test_a_number_of_many_digits_is_no_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (found,) = sources.find(["20261123174500"])
    with pytest.raises(SourceError, match="no such file"):
        found.read()  # type: ignore[union-attr]


def test_a_file_is_bounded_before_it_is_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_BYTES", 100)
    path = tmp_path / "large.png"
    path.write_bytes(bytes(101))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(bytes(101)), encoding="utf-8"))
    for found in sources.find([str(path), "-"]):
        with pytest.raises(SourceError, match="more than 100 bytes"):
            found.read()  # type: ignore[union-attr]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xd8picture"), encoding="utf-8"))
    (found,) = sources.find(["-"])
    assert isinstance(found, Picture)
    assert (found.name, found.read()) == ("stdin", b"\xff\xd8picture")


def test_cameras_streams_and_sequences_are_videos(tmp_path: Path) -> None:
    link = tmp_path / "by-id"
    link.symlink_to("/dev/video7")
    words = ["0", "/dev/video3", str(link), "rtsp://user:secret@host/path", "frames/shot_%04d.png"]
    *cameras, stream, sequence = sources.find(words)
    assert [(one.address, one.live) for one in cameras] == [(0, True), (3, True), (7, True)]  # type: ignore[union-attr]
    assert (stream.address, stream.live) == ("rtsp://user:secret@host/path", True)  # type: ignore[union-attr]
    assert "secret" not in stream.name
    assert (str(sequence.relative), sequence.live) == ("shot.mp4", False)  # type: ignore[union-attr]


def test_a_camera_that_is_not_there_is_one_line() -> None:
    (camera,) = sources.find(["9999"])
    with pytest.raises(SourceError, match=r"^found cameras: (none|/dev/video.*), expected /dev/video9999$"):
        camera.open()  # type: ignore[union-attr]


def test_a_silent_stream_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clients.video.source.TIMEOUT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as listener:  # its backlog takes who connects
        (stream,) = sources.find([f"rtsp://127.0.0.1:{listener.getsockname()[1]}/camera"])
        with pytest.raises(SourceError, match=r"nothing came for 0\.3 s$"):
            stream.open()  # type: ignore[union-attr]


def test_frames_of_an_image_sequence(tmp_path: Path) -> None:
    for number in range(3):
        cv2.imwrite(str(tmp_path / f"f{number:02}.png"), np.full((8, 16, 3), number * 100, np.uint8))
    (video,) = sources.find([str(tmp_path / "f%02d.png")])
    assert isinstance(video, Video)
    with video.open() as stream:
        frames = list(stream)
    assert [frame.number for frame in frames] == [0, 1, 2]
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [0, 100, 200]
    assert frames[2].time_s == pytest.approx(2 / stream.fps)


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        ({3: b"no picture"}, [3]),
        ({0: b"no picture", 1: b""}, [0, 1]),
        ({5: b"", 6: b"no picture"}, [5, 6]),
        # Behind these the last ones still wait in the decoder.
        ({10: b"no picture"}, [10]),
        ({7: None, 8: None}, [7, 8]),
        ({1: None, 2: b"no picture", 3: None, 11: b""}, [1, 2, 3, 11]),
    ],
)
def test_what_an_image_sequence_lacks_is_counted(
    tmp_path: Path, damage: dict[int, bytes | None], lost: list[int]
) -> None:
    """And the others keep their numbers and times; the last number is 111."""
    for number in range(12):
        cv2.imwrite(str(tmp_path / f"f{100 + number:04}.png"), np.full((8, 16, 3), number * 20, np.uint8))
    (tmp_path / "f99.png").touch()  # Not as the pattern writes it.
    for number, content in damage.items():
        path = tmp_path / f"f{100 + number:04}.png"
        path.unlink() if content is None else path.write_bytes(content)
    (video,) = sources.find([str(tmp_path / "f%04d.png")])
    with video.open() as stream:  # type: ignore[union-attr]
        frames = list(stream)
    kept = [number for number in range(12) if number not in lost]
    assert [frame.number for frame in frames] == kept
    assert [int(frame.pixels[0, 0, 0]) for frame in frames] == [number * 20 for number in kept]
    assert [frame.time_s for frame in frames] == pytest.approx([number / 25 for number in kept])
    about = f"{len(kept)} of about 12 frames could be read; their results are kept"
    assert stream.problem == f"the file is cut or damaged: {about}"


def watch(word: object) -> tuple[int, str]:
    """How many frames there were, and the problem after them."""
    (video,) = sources.find([str(word)])
    assert isinstance(video, Video)
    with video.open() as stream:
        return len(list(stream)), stream.problem


@pytest.mark.parametrize(
    ("name", "codec"), [("a.avi", "MJPG"), ("a.mkv", "mp4v"), ("a.mp4", "mp4v"), ("a.mov", "mp4v")]
)
def test_a_file_that_was_cut_says_so(tmp_path: Path, name: str, codec: str) -> None:
    clip = clips.write(tmp_path / name, 40, codec)
    if clip.suffix in (".mp4", ".mov"):
        clips.describe_first(clip)
    assert watch(clip) == (40, "")
    frames, problem = watch(clips.cut(clip))
    assert 15 < frames < 35
    assert problem.startswith(f"the file is cut or damaged: {frames} of about 40 frames could be read")


def test_an_mp4_file_without_its_end_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="FFmpeg"):
        watch(clips.cut(clips.write(tmp_path / "a.mp4")))


def test_zeros_where_frames_should_be(tmp_path: Path) -> None:
    clip = clips.describe_first(clips.write(tmp_path / "a.mp4"))
    whole = clip.stat().st_size
    clips.cut(clip).write_bytes(clip.read_bytes().ljust(whole, b"\0"))
    assert "cut or damaged" in watch(clip)[1]


def test_a_wrong_count_is_not_believed(tmp_path: Path) -> None:
    clip = clips.write(tmp_path / "a.ts")
    assert cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FRAME_COUNT) > 70
    assert watch(clip) == (40, "")


def test_a_trimmed_file_is_whole(tmp_path: Path) -> None:
    clip = clips.trim(clips.write(tmp_path / "a.mp4", 40), hidden=15)
    assert cv2.VideoCapture(str(clip)).get(cv2.CAP_PROP_FRAME_COUNT) == 40
    assert watch(clip) == (25, "")


def test_a_stream_that_ends_is_lost() -> None:
    with clips.stream(12) as address:
        frames, problem = watch(address)
    assert 10 <= frames <= 13
    assert problem == f"stream lost after {frames} frames; their results are kept"


@pytest.mark.parametrize("content", [b"", b"no video at all" * 100])
def test_what_is_no_video(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    (video,) = sources.find([str(path)])
    with pytest.raises(SourceError, match="FFmpeg"), video.open():  # type: ignore[union-attr]
        pass
