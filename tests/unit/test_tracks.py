"""Identities over a stream, and what is kept of it."""

import threading

import numpy as np
import pytest
import reference
from centernet_image.streams import Streams, TooManyError
from centernet_image.tasks.tracks import Tracker, heat
from served_family import naive_heat

PICTURE = "16004479832"
NETWORKS = ("tracking_dla_34", "tracking_amodal_dla_34")


class Frames:
    """A tracker that is told centers, sides of the boxes, classes and where each was before."""

    def __init__(self):
        self.tracker = Tracker()

    def __call__(self, centers, *, side=10.0, classes=None, moved=None):
        centers = np.array(centers, float).reshape(-1, 2)
        half = np.broadcast_to(np.array(side, float).reshape(-1, 1) / 2, centers.shape)
        boxes = np.concatenate([centers - half, centers + half], axis=1)
        classes = np.zeros(len(centers), int) if classes is None else np.array(classes)
        moved = np.zeros_like(centers) if moved is None else np.array(moved, float)
        return self.tracker.update(boxes, classes, centers, moved).tolist()


def test_each_detection_follows_its_displacement():
    follow = Frames()
    assert follow([(0, 0), (100, 0)]) == [1, 2]
    # They have changed places; without the displacements each would take the other's.
    assert follow([(100, 0), (0, 0)], moved=[(-100, 0), (100, 0)]) == [1, 2]
    assert follow([(1, 0), (99, 0)]) == [2, 1]


def test_the_best_detection_chooses_first_and_takes_the_nearest():
    follow = Frames()
    assert follow([(0, 0), (6, 0)]) == [1, 2]
    assert follow([(4, 0), (7, 0)]) == [2, 1]
    assert follow([(4, 0)]) == [2], "the nearest, not the first"


def test_no_farther_than_the_root_of_the_smaller_area():
    for side_before, side_now, near in ((10, 10, 10), (10, 40, 10), (40, 10, 10)):
        for distance, ids in ((near, [1]), (near + 0.01, [2])):
            follow = Frames()
            follow([(0, 0)], side=side_before)
            assert follow([(distance, 0)], side=side_now) == ids, (side_before, side_now, distance)


def test_another_class_is_another_track():
    follow = Frames()
    assert follow([(0, 0)], classes=[1]) == [1]
    assert follow([(0, 0), (0, 0)], classes=[2, 1]) == [2, 1]


def test_a_track_that_is_missed_once_is_gone():
    follow = Frames()
    assert follow([(0, 0)]) == [1]
    assert follow([]) == []
    assert follow([(0, 0)]) == [2]


def test_heat_against_a_loop():
    rng = np.random.default_rng(0)
    corners, sides = rng.uniform(-40, 90, (30, 2)), rng.uniform(0.2, 60, (30, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    found = heat(boxes, (64, 96))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive_heat(boxes.tolist(), (64, 96)), atol=1e-6)
    assert found.max() == 1
    assert not heat(np.array([[10, 10, 5, 20], [200, 5, 220, 9]], np.float32), (64, 96)).any()


@pytest.mark.parametrize("name", NETWORKS)
def test_the_originals_tracks_and_heat(shared, name):
    facts = reference.detections(shared, name, PICTURE)
    tracker = Tracker()
    for frame in facts["frames"]:
        rows, tracks = np.array(frame["detections"]), np.array(frame["tracks"])
        ids = tracker.update(rows[:, :4], rows[:, 5].astype(int), rows[:, 6:8], rows[:, 8:10])
        expected = {(*row[:4], row[5]): int(row[6]) for row in tracks}
        assert {(*row[:4], row[5]): int(one) for row, one in zip(rows, ids, strict=True)} == expected
    height, width = facts["input"]
    (left, top, right, bottom) = np.array(facts["frames"][0]["detections"])[:, :4].T
    scale = width / 906  # of the picture, 906x600
    there = [(x - 453) * scale + width / 2 for x in (left, right)]
    there += [(y - 300) * scale + height / 2 for y in (top, bottom)]
    boxes = np.stack([there[0], there[2], there[1], there[3]], axis=1)
    with np.load(shared / f"reference/{name}.{PICTURE}.pre_hm.npz") as file:
        expected = file["pre_hm"].squeeze()
    # The file's boxes are rounded: a middle or a radius may be another one.
    assert (np.abs(heat(boxes, (height, width)) - expected) > 1e-3).mean() < 2e-3


class Room:
    def __init__(self, **options):
        self.count = 0
        self.changed = threading.Condition()
        self.streams = Streams(count=self._change, **options)

    def _change(self, change):
        with self.changed:
            self.count += change
            self.changed.notify_all()

    def frame(self, sequence, *, start=False, end=False):
        with self.streams.frame(sequence, start=start, end=end) as stream:
            return stream


def test_a_stream_lives_from_its_start_to_its_end():
    room = Room(max_streams=2, idle_s=60)
    first = room.frame("a", start=True)
    assert room.frame("a") is first
    assert room.frame(7, start=True) is not first
    assert room.count == 2
    with pytest.raises(TooManyError, match="sequence b: found 2 streams, limit max_streams is 2"):
        room.frame("b", start=True)
    with pytest.raises(ValueError, match="sequence b: found no earlier frame of it, expected sequence_start"):
        room.frame("b")
    assert room.frame("a", end=True) is first
    assert room.count == 1
    with pytest.raises(ValueError, match="sequence a"):
        room.frame("a")
    assert room.frame("a", start=True) is not first
    again = room.frame("a", start=True)
    assert room.frame("a") is again
    assert room.count == 2
    room.streams.close()


def test_a_stream_that_fails_on_its_last_frame_ends_all_the_same():
    room = Room(max_streams=1, idle_s=60)
    with pytest.raises(ZeroDivisionError), room.streams.frame(1, start=True, end=True):
        _ = 1 / 0
    assert room.count == 0
    room.streams.close()


def test_an_idle_stream_is_forgotten_but_not_while_a_frame_is_under_way():
    room = Room(max_streams=2, idle_s=0.05)
    with room.streams.frame("busy", start=True, end=False) as stream:
        room.frame("idle", start=True)
        with room.changed:
            assert room.changed.wait_for(lambda: room.count == 1, timeout=60)
        with pytest.raises(ValueError, match="sequence idle"):
            room.frame("idle")
        assert stream is not None
        assert room.count == 1
    with room.changed:
        assert room.changed.wait_for(lambda: room.count == 0, timeout=60)
    room.streams.close()
