"""Videos keep their own times, in results and in copies."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import clips
import cv2
import numpy as np
import pytest
from pictures import picture

from clients.errors import CenterNetError, SourceError
from clients.video.source import Frame, Video
from clients.video.writer import VideoWriter

SIZE = (64, 48)
UNEVEN_S = [0.0, 0.04, 0.08, 1.0, 2.5, 2.54, 7.0]
TICK = Fraction(1, 1000)


def write(
    path: Path,
    times_s: list[float],
    *,
    codec: str = "libx264",
    size: tuple[int, int] = SIZE,
    rotation: int = 0,
    form: str | None = None,
) -> Path:
    """Writes a video whose frames are shown at the given times."""
    with av.open(str(path), "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = TICK
        if rotation:
            stream.set_display_rotation(rotation)
        for number, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(size[1], size[0], seed=number), format="bgr24")
            frame.pts, frame.time_base = round(time_s / TICK), TICK
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def watch(path: Path | str) -> list[Frame]:
    with Video("clip", str(path), Path("clip.mp4")).open() as stream:
        frames = list(stream)
        assert stream.problem == ""
    return frames


def times(path: Path | str) -> list[float]:
    return [round(frame.time_s, 3) for frame in watch(path)]


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv", ".3gp", ".ts", ".m2ts", ".flv", ".webm"])
def test_times_are_the_containers(tmp_path: Path, suffix: str) -> None:
    codec = "libvpx" if suffix == ".webm" else "libx264"
    form = {".m2ts": "mpegts"}.get(suffix)
    assert times(write(tmp_path / f"a{suffix}", UNEVEN_S, codec=codec, form=form)) == UNEVEN_S


def test_times_of_the_case(shared: Path) -> None:
    found = times(shared / "cases" / "video-variable-rate.mp4")
    assert found[9:12] == [0.3, 1.0, 2.0]
    assert found[-1] == 11.3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_times_begin_with_the_video(tmp_path: Path, suffix: str) -> None:
    assert times(write(tmp_path / f"a{suffix}", [5 + time_s for time_s in UNEVEN_S])) == UNEVEN_S


def test_without_times_the_frame_rate_counts(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.h264", [number / 25 for number in range(10)], form="h264")
    found = times(clip)
    assert len(found) == 10
    assert found == pytest.approx([number / 25 for number in range(10)], abs=2e-3)


def test_an_image_sequence_may_begin_anywhere(tmp_path: Path) -> None:
    for number in range(117, 120):
        cv2.imwrite(str(tmp_path / f"f{number:04}.png"), picture(48, 64, seed=number))
    frames = watch(tmp_path / "f%04d.png")
    assert [frame.time_s for frame in frames] == pytest.approx([0, 0.04, 0.08])
    for frame, number in zip(frames, range(117, 120), strict=True):
        np.testing.assert_array_equal(frame.pixels, picture(48, 64, seed=number))


def copy(source: Path, target: Path) -> list[CenterNetError]:
    errors: list[CenterNetError] = []
    with (
        Video("clip", str(source), Path("clip.mp4")).open() as stream,
        VideoWriter(target, stream, errors.append) as writer,
    ):
        for frame in stream:
            writer.append(frame.pixels, frame.time_s)
    return errors


@pytest.mark.parametrize("begin_s", [0, 5])
@pytest.mark.parametrize("size", [SIZE, (66, 50)])
def test_a_copy_keeps_times_size_and_pixels(tmp_path: Path, begin_s: int, size: tuple[int, int]) -> None:
    source = write(tmp_path / "a.mkv", [begin_s + time_s for time_s in UNEVEN_S], size=size)
    assert copy(source, tmp_path / "copy.mp4") == []
    originals, copies = watch(source), watch(tmp_path / "copy.mp4")
    assert [round(frame.time_s, 3) for frame in copies] == UNEVEN_S
    for original, copied in zip(originals, copies, strict=True):
        assert copied.pixels.shape == original.pixels.shape == (size[1], size[0], 3)
        assert np.abs(original.pixels.astype(int) - copied.pixels).mean() < 6
    # Other players see the same.
    assert cv2.VideoCapture(str(tmp_path / "copy.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == len(UNEVEN_S)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mkv", "copy.mp4"]


def test_a_copy_replaces_what_a_link_leads_to(tmp_path: Path) -> None:
    link, target = tmp_path / "copy.mp4", tmp_path / "far" / "b.mp4"
    link.symlink_to(target)
    assert copy(write(tmp_path / "a.mkv", [0]), link) == []
    assert link.is_symlink()
    assert len(watch(target)) == 1
    assert [path.name for path in target.parent.iterdir()] == ["b.mp4"]


@pytest.mark.parametrize("size", [(65, 48), (64, 49), (7, 5)])
def test_a_copy_of_odd_size(tmp_path: Path, size: tuple[int, int]) -> None:
    cv2.imwrite(str(tmp_path / "0.png"), picture(size[1], size[0]))
    assert copy(tmp_path / "%d.png", tmp_path / "copy.mp4") == []
    (frame,) = watch(tmp_path / "copy.mp4")
    assert frame.pixels.shape == (size[1], size[0], 3)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_a_phones_video_is_upright(tmp_path: Path, rotation: int) -> None:
    (plain,) = watch(write(tmp_path / "plain.mp4", [0]))
    (turned,) = watch(write(tmp_path / "turned.mp4", [0], rotation=rotation))
    np.testing.assert_array_equal(turned.pixels, np.rot90(plain.pixels, rotation // 90))


def test_times_that_do_not_grow_are_still_a_video(tmp_path: Path) -> None:
    errors: list[CenterNetError] = []
    source = write(tmp_path / "a.mp4", UNEVEN_S)
    with (
        Video("clip", str(source), Path("clip.mp4")).open() as stream,
        VideoWriter(tmp_path / "copy.mp4", stream, errors.append) as writer,
    ):
        for time_s in (0.0, 0.5, 0.5, 0.2, 1.0):
            writer.append(picture(48, 64), time_s)
    assert errors == []
    assert len(watch(tmp_path / "copy.mp4")) == 5


def test_files_in_a_row_go_on_in_time(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.ts", [number / 25 for number in range(10)])
    clip.write_bytes(clip.read_bytes() * 3)
    expected = pytest.approx([number / 25 for number in range(30)], abs=2e-3)
    assert times(clip) == expected
    assert copy(clip, tmp_path / "copy.mp4") == []
    assert times(tmp_path / "copy.mp4") == expected


def test_damaged_frames_are_counted(tmp_path: Path) -> None:
    """They are answered: the decoder has filled in what is missing."""
    clip = write(tmp_path / "a.ts", [number / 25 for number in range(10)], size=(384, 302))
    content = clip.read_bytes()
    begin, end = len(content) // 40, len(content) // 20
    clip.write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    with Video("clip", str(clip), Path("clip.mp4")).open() as stream:
        frames = list(stream)
    read = f"{len(frames)} of about 10 frames could be read, 1 of them damaged; their results are kept"
    assert stream.problem == f"the file is cut or damaged: {read}"


def test_a_frame_that_cannot_be_read_keeps_its_number(tmp_path: Path) -> None:
    clip = clips.write(tmp_path / "a.avi", 40, "MJPG")
    with av.open(str(clip)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    content = clip.read_bytes()
    begin, size = places[7]
    clip.write_bytes(content[:begin] + bytes(size) + content[begin + size :])
    with Video("clip", str(clip), Path("clip.mp4")).open() as stream:
        numbers = [frame.number for frame in stream]
    assert numbers == [number for number in range(40) if number != 7]
    about = "39 of about 40 frames could be read; their results are kept"
    assert stream.problem == f"the file is cut or damaged: {about}"


def test_a_codec_without_decoder_is_named(tmp_path: Path) -> None:
    clip = write(tmp_path / "a.mp4", [0, 0.04])
    clip.write_bytes(clip.read_bytes().replace(b"avc1", b"vvc9"))
    with pytest.raises(SourceError, match="no decoder for its video, codec vvc9"):
        watch(clip)


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="only sound"):
        watch(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_sound_that_is_longer_than_the_pictures_is_no_damage(tmp_path: Path, suffix: str) -> None:
    clip = tmp_path / f"a{suffix}"
    with av.open(str(clip), "w") as container:
        pictures, sound = container.add_stream("libx264", rate=25), container.add_stream("aac", rate=8000)
        pictures.width, pictures.height, pictures.pix_fmt = *SIZE, "yuv420p"
        for number in range(50):
            frame = av.VideoFrame.from_ndarray(picture(SIZE[1], SIZE[0], seed=number), format="bgr24")
            container.mux(pictures.encode(frame))
        for number in range(80):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
            silence.sample_rate, silence.pts = 8000, 1024 * number
            container.mux(sound.encode(silence))
        container.mux([*pictures.encode(None), *sound.encode(None)])
    assert len(watch(clip)) == 50
    if suffix == ".mkv":
        clip.write_bytes(clip.read_bytes()[: clip.stat().st_size // 4])
        with Video("clip", str(clip), Path("clip.mp4")).open() as stream:
            frames = len(list(stream))
        assert 1 < frames < 45
        assert stream.problem.startswith(f"the file is cut or damaged: {frames} of about 50 frames")


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", "硬币 ç.mp4".encode(), b"a:b.mp4", b"50%d.mp4", b"-i.mp4"])
def test_names_of_all_kinds(tmp_path: Path, name: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.mp4", UNEVEN_S).rename(tmp_path / os.fsdecode(name))
    monkeypatch.chdir(tmp_path)
    assert times(os.fsdecode(name)) == UNEVEN_S
    assert copy(Path(os.fsdecode(name)), Path(os.fsdecode(name)[::-1] + ".mp4")) == []


def test_a_copy_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    source = write(tmp_path / "a.mp4", UNEVEN_S)
    (tmp_path / "file").touch()
    (error,) = copy(source, tmp_path / "file" / "copy.mp4")
    assert "cannot write" in str(error)


LIMITED = """
import resource, signal, sys
from pathlib import Path
from test_client_video import copy
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
print(*copy(Path(sys.argv[1]), Path(sys.argv[2])))
"""


def test_a_disk_that_fills_up_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    """As a limit of the size of files, which fails in the same place."""
    source = write(tmp_path / "a.mp4", [number / 25 for number in range(60)], size=(320, 240))
    command = [sys.executable, "-c", LIMITED, source, tmp_path / "copy.mp4"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        command, cwd=Path(__file__).parent, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.count("cannot write") == 1
    assert done.stderr == ""
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
