"""Identities that the client gives, and the newest frames of a live stream."""

import threading
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from clients.detections import Detections
from clients.video.live import WAITING, Latest
from clients.video.tracking import FIRST_SCORE, Tracker

FPS = 25.0


def detections(boxes: object, scores: object = 0.9, embeddings: object = None) -> Detections:
    xyxy = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(
        xyxy,
        np.broadcast_to(np.float32(scores), len(xyxy)),
        np.zeros(len(xyxy), np.int32),
        ("coin",) * len(xyxy),
        embeddings=None if embeddings is None else np.array(embeddings, np.float32),
    )


def follow(frames: list[Detections]) -> list[list[int]]:
    tracker = Tracker(FPS)
    return [tracker.update(one, number / FPS).tracks.tolist() for number, one in enumerate(frames)]


def square(x: float, y: float = 0) -> list[float]:
    return [x, y, x + 40, y + 40]


def test_identities_belong_to_rows_whatever_their_order() -> None:
    """Objects that move; their rows are in another order in each frame, one of them scores lower."""
    rng = np.random.default_rng(0)
    starts, steps = np.arange(6) * 100.0, rng.uniform(-6, 6, 6)
    found: list[set[int]] = [set() for _ in starts]
    tracker = Tracker(FPS)
    for number in range(20):
        order = rng.permutation(6)
        boxes = [square(starts[one] + steps[one] * number) for one in order]
        scores = np.where(order == 2, FIRST_SCORE - 0.05 * (number > 3), 0.9)
        tracks = tracker.update(detections(boxes, scores), number / FPS).tracks
        assert tracks is not None
        for one, track in zip(order, tracks.tolist(), strict=True):
            if number:
                found[one].add(track)
            else:
                assert track == -1
    assert sorted(map(sorted, found)) == [[identity] for identity in range(6)]


def test_an_object_out_of_sight_keeps_its_identity_for_a_second() -> None:
    seen, gone = detections([square(0)]), detections([])
    short = follow([seen, seen, *[gone] * 20, seen, seen])
    assert short[1] == short[-1] == [0]
    long = follow([seen, seen, *[gone] * 30, seen, seen])
    assert long[-1] == [1]


def test_frames_without_objects_and_times_that_stand_still() -> None:
    tracker = Tracker(FPS)
    assert tracker.update(detections([]), 0.0).tracks.tolist() == []
    # A warning is an error here.
    found = [tracker.update(detections([square(0)]), time_s).tracks.tolist() for time_s in (0.0, 0.0, -1.0)]
    assert found == [[-1], [0], [0]]


def test_what_is_looked_at_no_longer_than_a_frame_has_no_identity() -> None:
    flash = detections([square(0), square(200)])
    alone = detections([square(0)])
    tracks = follow([alone, alone, flash, alone])
    assert tracks[1:] == [[0], [0, -1], [0]]


def test_embeddings_tell_crossing_objects_apart() -> None:
    """Two objects meet, and while they hide each other turn round: by place alone they would swap."""
    one, other = np.eye(2, 8)
    frames = []
    for number in range(12):
        # They go towards each other, and after the sixth frame back again.
        way = 7.0 * min(number, 11 - number)
        frames.append(([square(way), square(84 - way)], [one, other]))
    seen = [frame for number, frame in enumerate(frames) if number not in (4, 5, 6, 7)]
    gaps = [0, 1, 2, 3, 8, 9, 10, 11]

    def tracked(with_embeddings: bool) -> list[list[int]]:
        tracker = Tracker(FPS)
        return [
            tracker.update(
                detections(boxes, 0.9, both if with_embeddings else None), number / FPS
            ).tracks.tolist()
            for number, (boxes, both) in zip(gaps, seen, strict=True)
        ]

    assert tracked(with_embeddings=False)[-1] == [1, 0]
    assert tracked(with_embeddings=True)[-1] == [0, 1]


class Stream:
    """A live stream whose frames are there at once, or that never gives one."""

    def __init__(self, frames: int, error: Exception | None = None) -> None:
        self.frames, self.error = frames, error

    def __iter__(self):
        yield from (SimpleNamespace(number=number) for number in range(self.frames))
        if self.error:
            raise self.error


def test_frames_are_dropped_evenly_and_counted() -> None:
    """Of each twelve that come four are taken at once, as for a batch: none is far from the next."""
    come, go = threading.Semaphore(0), threading.Semaphore(0)

    def each():
        for number in range(120):
            yield SimpleNamespace(number=number)
            if number % 12 == 11:  # all before are waiting
                come.release()
                go.acquire()

    numbers = []
    with Latest(each(), threading.Event()) as latest:  # type: ignore[arg-type]
        frames = iter(latest)
        for last in range(11, 120, 12):
            come.acquire()
            numbers += [next(frames).number for _ in range(WAITING)]
            assert numbers[-1] == last, "not the newest"
            go.release()
        numbers += [frame.number for frame in frames]
    assert latest.dropped == 120 - len(numbers)
    assert max(second - first for first, second in pairwise([-1, *numbers])) <= 6


def test_frames_that_are_taken_in_time_are_all_there() -> None:
    taken = threading.Semaphore(0)

    def each():
        for number in range(20):
            yield SimpleNamespace(number=number)
            taken.acquire()

    numbers = []
    with Latest(each(), threading.Event()) as latest:  # type: ignore[arg-type]
        for frame in latest:
            numbers.append(frame.number)
            taken.release()
    assert all(second == first + 1 for first, second in pairwise(numbers))
    assert (len(numbers), latest.dropped) == (20, 0)


def test_an_error_of_the_stream_comes_after_its_frames() -> None:
    with Latest(Stream(3, OSError("gone")), threading.Event()) as latest:  # type: ignore[arg-type]
        frames = iter(latest)
        assert [next(frames).number for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="gone"):
            next(frames)


def test_a_stream_that_is_stopped_ends() -> None:
    stop, never = threading.Event(), threading.Event()

    def silent():
        yield SimpleNamespace(number=0)
        never.wait()

    latest = Latest(silent(), stop)  # type: ignore[arg-type]
    with latest:
        frames = iter(latest)
        assert next(frames).number == 0
        stop.set()
        assert list(frames) == []
        never.set()
