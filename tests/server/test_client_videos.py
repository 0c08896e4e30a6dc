"""Videos in detect.py: identities, several at once, and live streams that are faster than the server."""

import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import clips
import numpy as np
import pytest
import rtsp
from network import Network

from clients import detect
from clients.video.live import WAITING

pytestmark = pytest.mark.server

PATIENCE_S = 60
"""Of a camera that waits for another video's results; what never comes is a failure and no hang."""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs detect.py's `main` in this process."""

    def run(url: str, *arguments: object) -> int:
        monkeypatch.setattr("sys.argv", ["detect.py", *map(str, arguments), "--url", url])
        return detect.main()

    return run


def by_video(results: Path) -> dict[str, list[dict]]:
    entries = defaultdict(list)
    for line in results.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        entries[entry["image"]].append(entry)
    return entries


def identities(entries: list[dict], truth: list[np.ndarray]) -> list[set[int]]:
    """For each coin of the truth, the identities that it had from the second frame on."""
    found: list[set[int]] = [set() for _ in truth[0]]
    for entry in entries[1:]:
        boxes = np.array([one["xyxy"] for one in entry["detections"]])
        for coin, box in enumerate(truth[entry["frame"]]):
            distances = np.abs(boxes - box).mean(axis=1)
            assert distances.min() < 13, (entry["frame"], coin)
            found[coin].add(entry["detections"][distances.argmin()].get("track", -1))
    return found


def test_coins_are_followed_in_each_video_by_itself(run, coins_server, capsys, tmp_path: Path) -> None:
    """24 coins, 24 identities, no switch; and the broken video between the two is a line."""
    paths = [tmp_path / "long.avi", tmp_path / "short.avi"]
    truths = [clips.coins(paths[0], 12), clips.coins(paths[1], 4, seed=4)]
    broken = tmp_path / "broken.avi"
    broken.write_bytes(b"no video")
    results, out = tmp_path / "out.jsonl", tmp_path / "out"
    sources = [paths[0], broken, paths[1]]
    arguments = ("--track", "--json", results, "--output-dir", out)
    assert run(coins_server.grpc_url, *sources, *arguments) == 1
    output = capsys.readouterr()
    table = " ".join(output.out.split())
    (line,) = output.err.splitlines()
    assert line.startswith(f"detect.py: {broken}: no video")
    found = by_video(results)
    assert set(found) == set(map(str, paths))
    for path, truth in zip(paths, truths, strict=True):
        entries = found[str(path)]
        assert [entry["frame"] for entry in entries] == list(range(len(truth)))
        each = identities(entries, truth)
        assert all(len(one) == 1 for one in each), each
        assert set.union(*each) == set(range(clips.COINS))
        # Nothing else is followed.
        every = {one.get("track", -1) for entry in entries for one in entry["detections"]}
        assert every - {-1} == set(range(clips.COINS))
        assert f"in {len(truth)} frames: " in table
    assert table.count("coin; 24") == 2  # "identities" is on the next line, after the name's end
    assert {path.name for path in out.iterdir()} == {"long.mp4", "short.mp4"}


def test_cameras_over_rtsp_are_followed(run, coins_server, capsys, tmp_path: Path) -> None:
    """As many frames as may wait, so that none is dropped; both cameras hang up in the next one."""
    truths = [clips.coins(tmp_path / f"{seed}.avi", WAITING + 1, seed=seed) for seed in (1, 4)]
    results = tmp_path / "out.jsonl"
    with rtsp.camera(tmp_path / "1.avi") as one, rtsp.camera(tmp_path / "4.avi") as other:
        login = one.replace("//", "//user:secret@")
        assert run(coins_server.grpc_url, login, other, "--track", "--json", results) == 1
    problem = f"stream lost after {WAITING} frames; their results are kept"
    said = sorted(capsys.readouterr().err.splitlines())
    assert said == sorted(f"detect.py: {address}: {problem}" for address in (one, other))
    found = by_video(results)
    for address, truth in zip((one, other), truths, strict=True):
        entries = found[address]
        assert [entry["frame"] for entry in entries] == list(range(WAITING))
        times = [entry["time_s"] for entry in entries]
        assert times == [round(number / clips.FPS, 3) for number in range(WAITING)]
        assert sorted(map(sorted, identities(entries, truth))) == [[coin] for coin in range(clips.COINS)]


def test_a_slow_stream_holds_nobody_back(run, server, monkeypatch, tmp_path: Path) -> None:
    """The camera is silent until the file, which was named after it, is done; then it goes on."""
    monkeypatch.setattr("clients.video.source.TIMEOUT_S", 2 * PATIENCE_S)
    clip, results = clips.write(tmp_path / "clip.avi", 20, "MJPG"), tmp_path / "out.jsonl"
    complete = []

    def when_the_file_is_done() -> None:
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end and not complete:
            if results.exists() and results.read_text().count(str(clip)) == 20:
                complete.append(True)
            time.sleep(0.05)

    with clips.stream(4, end=when_the_file_is_done) as address:
        assert run(server.grpc_url, address, clip, "--json", results) == 1
    assert complete
    found = by_video(results)
    assert [entry["frame"] for entry in found[str(clip)]] == list(range(20))
    assert found[address][-1]["frame"] == 3


def test_dropped_frames_are_counted(run, server, capsys, tmp_path: Path) -> None:
    """The server's answers wait until the camera has sent all: more than sockets hold, so most was read."""
    frames, results = 60, tmp_path / "out.jsonl"
    network = Network(server.grpc_url)
    calls = itertools.count()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    jpeg = clips.cv2.imencode(".jpg", noise, [clips.cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
    assert frames * len(jpeg) > 16e6

    def begin() -> None:
        if next(calls):  # The first one only asks what this is.
            network.hold()

    try:
        with clips.stream(frames, jpeg=jpeg, begin=begin, end=network.release) as address:
            assert run(network.url, address, "--json", results) == 1
    finally:
        network.release()
        network.close()
    note, lost = capsys.readouterr().err.splitlines()
    (entries,) = by_video(results).values()
    numbers = [entry["frame"] for entry in entries]
    assert numbers == sorted(set(numbers))
    dropped = int(note.split(f"{address}: ")[1].split(" frames dropped")[0])
    assert dropped >= 10
    assert f"lost after {len(entries) + dropped} frames" in lost
    # The newest ones are answered.
    assert numbers[-1] == len(entries) + dropped - 1
