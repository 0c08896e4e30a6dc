"""detect.py and CenterNetClient against a real server."""

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import clips
import cv2
import exported
import numpy as np
import pytest
from centernet_image.decode import decode
from pictures import encode, picture
from PIL import Image
from protocols import PROTOCOLS

from clients import (
    AsyncCenterNetClient,
    CenterNetClient,
    DeadlineError,
    Detections,
    RejectedError,
    RetryPolicy,
    detect,
)

pytestmark = pytest.mark.server


@pytest.fixture(params=PROTOCOLS)
def client(request: pytest.FixtureRequest, server) -> Iterator[CenterNetClient]:
    url = getattr(server, f"{request.param}_url")
    with CenterNetClient(url, protocol=request.param) as client:
        yield client


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, server) -> Callable[..., int]:
    """Runs detect.py's `main` in this process."""

    def run(*arguments: object) -> int:
        words = ["detect.py", *map(str, arguments), "--url", server.grpc_url]
        monkeypatch.setattr("sys.argv", words)
        return detect.main()

    return run


def assert_same(found: Detections, expected: Detections) -> None:
    assert found.labels == expected.labels
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.05)


def odd_pictures(folder: Path) -> dict[str, Path]:
    """One picture, 240x180 as people see it, in every form that decoders get wrong."""
    upright = picture(240, 180, seed=3)
    rgb = Image.fromarray(upright[..., ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb.transpose(Image.Transpose.ROTATE_90).save(folder / "rotated.jpg", quality=95, exif=exif)
    rgb.convert("L").save(folder / "grey.png")
    alpha = rgb.convert("RGBA")
    alpha.putalpha(40)
    alpha.save(folder / "alpha.png")
    cv2.imwrite(str(folder / "sixteen.png"), upright.astype(np.uint16) * 257)
    rgb.convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    rgb.quantize(64).save(folder / "palette.png")
    rgb.save(folder / "lossless.webp", lossless=True)
    rgb.save(folder / "plain.tiff")
    return {path.name: path for path in sorted(folder.iterdir())}


def few(client: CenterNetClient, pictures: list[np.ndarray]) -> float:
    """A threshold that leaves a box in every picture, and room between the boxes."""
    return min(float(client.detect(pixels, threshold=0.0).scores[0]) for pixels in pictures) - 1e-3


def test_odd_pictures_are_drawn_as_people_see_them(run, server, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    paths = odd_pictures(tmp_path / "in")
    pictures = {name: decode(path.read_bytes()) for name, path in paths.items()}
    out, results = tmp_path / "out", tmp_path / "out.json"
    with CenterNetClient(server.grpc_url) as client:
        threshold = few(client, list(pictures.values()))
        assert run(tmp_path / "in", "--output-dir", out, "--json", results, "--threshold", threshold) == 0
        entries = {Path(entry["image"]).name: entry for entry in json.loads(results.read_text())}
        assert list(entries) == list(paths)
        for name, pixels in pictures.items():
            assert pixels.shape == (240, 180, 3)
            # Decoded and warped here, by the other ensemble: the same detections.
            expected = client.detect(pixels, threshold=threshold)
            assert len(expected) >= 1, name
            boxes = [found["xyxy"] for found in entries[name]["detections"]]
            np.testing.assert_allclose(boxes, expected.xyxy, atol=0.06)
            drawing = cv2.imread(str(next(out.glob(f"{Path(name).stem}.*"))))
            shown = cv2.resize(pixels, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
            assert drawing.shape == shown.shape
            untouched = (np.abs(drawing.astype(int) - shown).max(axis=-1) < 20).mean()
            assert 0.5 < untouched < 0.999, name


def test_both_ways_in_agree_and_labels_come_from_the_server(client: CenterNetClient) -> None:
    pixels = picture(211, 317)
    found = client.detect(encode(pixels), threshold=0.0)
    assert_same(client.detect(pixels, threshold=0.0), found)
    assert len(found) == 100
    assert set(found.labels) <= set(exported.SMALL_CLASSES)
    assert all(
        exported.SMALL_CLASSES[index] == label
        for index, label in zip(found.class_ids, found.labels, strict=True)
    )
    assert client.frame_size() == exported.SMALL_SIZE


def test_threshold_of_the_request(client: CenterNetClient) -> None:
    data = encode(picture(64, 64))
    every = client.detect(data, threshold=0.0)
    middle = float(np.sort(every.scores)[50:52].mean())
    assert len(client.detect(data, threshold=middle)) == (every.scores >= middle).sum() == 49


def test_supervision(client: CenterNetClient) -> None:
    found = client.detect(picture(64, 64))
    converted = found.to_supervision()
    np.testing.assert_array_equal(converted.xyxy, found.xyxy)
    assert list(converted["class_name"]) == list(found.labels)


def test_many_are_answered_once_in_order_with_bounded_memory(client: CenterNetClient) -> None:
    sizes = [(40 + number % 7 * 30, 50 + number % 5 * 40) for number in range(40)]
    taken = answered = 0

    def source() -> Iterator[int]:
        nonlocal taken
        for number in range(40):
            taken += 1
            assert taken - answered <= 8
            yield number

    def load(number: int) -> bytes:
        if number == 11:
            raise OSError("gone")
        return b"text" if number == 23 else encode(picture(*sizes[number], seed=number))

    for answer in client.detect_many(source(), load=load, threshold=0.0):
        assert answer.picture == answered
        if answered in (11, 23):
            assert answer.detections is None
            assert isinstance(answer.error, OSError if answered == 11 else RejectedError)
        else:
            assert answer.detections is not None
            assert_same(answer.detections, client.detect(load(answered), threshold=0.0))
        answered += 1
    assert answered == 40


def test_asyncio(server) -> None:
    data = [encode(picture(50, 60, seed=seed)) for seed in range(12)]

    async def main() -> list[Detections | None]:
        async with AsyncCenterNetClient(server.http_url, protocol="http", concurrency=3) as client:
            await client.check_ready()
            return [answer.detections async for answer in client.detect_many(data)]

    with CenterNetClient(server.grpc_url) as client:
        for found, one in zip(asyncio.run(main()), data, strict=True):
            assert found is not None
            assert_same(found, client.detect(one))


def test_a_client_that_is_left_early_cleans_up(client: CenterNetClient) -> None:
    data = encode(picture(64, 64))
    for answer in client.detect_many(data for _ in range(10**9)):
        assert answer.detections is not None
        break
    assert len(client.detect(data)) == len(answer.detections)


def test_a_deadline(server) -> None:
    with (
        CenterNetClient(server.grpc_url, retry=RetryPolicy(timeout_s=0.001, retries=1)) as client,
        pytest.raises(DeadlineError, match="no answer within"),
    ):
        client.detect(encode(picture(2000, 2000)))


def test_failures_are_a_line_each_and_the_rest_goes_on(run, capsys, tmp_path: Path) -> None:
    good, text, cut = tmp_path / "good.png", tmp_path / "text.jpg", tmp_path / "cut.jpg"
    good.write_bytes(encode(picture(60, 80)))
    text.write_text("no picture")
    cut.write_bytes(encode(picture(60, 80), "JPEG")[:400])
    results = tmp_path / "out.jsonl"
    assert run(text, good, tmp_path / "missing.png", tmp_path / "**.jpg", cut, good, "--json", results) == 1
    output = capsys.readouterr()
    lines = output.err.splitlines()
    assert [Path(line.split(": ")[1]).name for line in lines] == [
        "text.jpg",
        "missing.png",
        "**.jpg",
        "cut.jpg",
    ]
    assert lines[1].endswith("missing.png: no such file")
    assert output.out.count("good.png") == 2
    assert len(results.read_text().splitlines()) == 2


def test_a_model_that_is_not_there(run, capsys, tmp_path: Path) -> None:
    assert run("x.png", "--model", "nobody") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "model 'nobody' is not ready" in line


def test_standard_input_and_output(run, capsys, monkeypatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(encode(picture(60, 80))), encoding="utf-8")
    monkeypatch.setattr("sys.stdin", stdin)
    assert run("-", "--json", "-", "--threshold", 0) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["image"] == "stdin"
    assert len(entry["detections"]) == 100


def test_coco_results(run, tmp_path: Path) -> None:
    path = tmp_path / "000000000042.png"
    path.write_bytes(encode(picture(60, 80)))
    results = tmp_path / "out.json"
    assert run(path, "--json", results, "--json-format", "coco") == 0
    rows = json.loads(results.read_text())
    assert len(rows) > 5
    assert {row["image_id"] for row in rows} == {42}
    assert {row["category_id"] for row in rows} <= {1, 2, 3}


@pytest.mark.parametrize("memory", ["none", "system"])
def test_video_round_trip(run, server, tmp_path: Path, memory: str) -> None:
    clip, out, results = tmp_path / "clip.avi", tmp_path / "out", tmp_path / "clip.jsonl"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"MJPG"), 12.5, (192, 128))
    frames = [picture(128, 192, seed=seed) for seed in range(30)]
    for frame in frames:
        writer.write(frame)
    writer.release()
    with CenterNetClient(server.grpc_url) as client:
        threshold = few(client, frames)
    options = ("--output-dir", out, "--json", results, "--shared-memory", memory, "--threshold", threshold)
    assert run(clip, *options) == 0

    original, annotated = cv2.VideoCapture(str(clip)), cv2.VideoCapture(str(out / "clip.mp4"))
    for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FPS):
        assert annotated.get(key) == original.get(key)
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    assert [(entry["frame"], entry["time_s"]) for entry in entries] == [(n, n / 12.5) for n in range(30)]
    with CenterNetClient(server.grpc_url) as client:
        for entry in entries:
            (_, pixels), (read, drawing) = original.read(), annotated.read()
            assert read
            expected = client.detect(pixels, threshold=threshold)
            np.testing.assert_allclose(
                [found["xyxy"] for found in entry["detections"]], expected.xyxy, atol=0.06
            )
            # The frame itself, with boxes on it.
            assert not np.array_equal(drawing, pixels)
            assert np.median(np.abs(drawing.astype(int) - pixels)) < 20
    assert not annotated.read()[0]


def test_a_video_that_fails_is_a_line_and_the_rest_goes_on(run, capsys, tmp_path: Path) -> None:
    clips = [tmp_path / folder / f"{folder}.mp4" for folder in ("first", "second")]
    for clip in clips:
        clip.parent.mkdir()
        writer = cv2.VideoWriter(str(clip), cv2.VideoWriter.fourcc(*"mp4v"), 10, (96, 64))
        writer.write(picture(64, 96))
        writer.release()
    assert run(*clips, "--output-dir", clips[0].parent) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "first.mp4: the drawing would replace the picture" in line
    assert (clips[0].parent / "second.mp4").is_file()


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_a_video_that_breaks_off_keeps_its_results(run, capsys, tmp_path: Path, kind: str) -> None:
    results, out = tmp_path / "out.jsonl", tmp_path / "out"
    with clips.stream(20) as address:
        clip = clips.cut(clips.write(tmp_path / "clip.avi", 30, "MJPG")) if kind == "file" else address
        assert run(clip, "--json", results, "--output-dir", out) == 1
    output = capsys.readouterr()
    *notes, line = output.err.splitlines()
    entries = [json.loads(line) for line in results.read_text().splitlines()]
    frames = len(entries)
    numbers = [entry["frame"] for entry in entries]
    if kind == "file":
        assert frames >= 15
        assert numbers == list(range(frames))
        expected = f"cut or damaged: {frames} of about 30"
    else:  # It came all at once: what was not answered in time is counted.
        read = frames + sum(int(note.split(": ")[2].split()[0]) for note in notes)
        assert 15 <= read <= 20
        assert numbers == sorted(set(numbers))
        expected = f"lost after {read} frames"
    assert all(entry["detections"] for entry in entries)
    assert line.startswith(f"detect.py: {clip}: ")
    assert expected in line
    assert f"in {frames} frames" in output.out
    (annotated,) = out.iterdir()
    assert cv2.VideoCapture(str(annotated)).get(cv2.CAP_PROP_FRAME_COUNT) == frames


def test_runs_as_a_script(server, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode(picture(60, 80)))
    command = [sys.executable, detect.__file__, path, "--url", server.grpc_url]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "a.png" in done.stdout
    assert "score" in done.stdout
