"""Identities over a video, for networks that answer none: ByteTrack, by Roboflow's `trackers`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from trackers import BaseIoU, ByteTrackTracker, IoU

from clients.detections import Detections

FIRST_SCORE = 0.4
"""An identity begins at this score, and goes on below it."""

SAME = 0.6
"""Least cosine of two embeddings of one object: FairMOT's (Zhang et al., 2021)."""

REACH = 1.5
"""How far an object is looked for by its embedding: diagonals of its box."""

MEMORY = 0.9
"""Share of the past in an identity's embedding, frame by frame: FairMOT's."""


class Tracker:
    """ByteTrack (Zhang et al., 2022) over the frames of one video.

    Boxes are matched by their overlap with where the Kalman filter expects them; where the network answers
    embeddings, by those, too. An identity is given when its object is seen in a second frame, and kept while
    the object is out of sight for a second.

    Args:
        fps: Frames per second.
    """

    def __init__(self, fps: float) -> None:
        self._likeness = _Likeness()
        self._byte_track = ByteTrackTracker(
            frame_rate=fps,
            track_activation_threshold=FIRST_SCORE,
            high_conf_det_threshold=FIRST_SCORE,
            iou=self._likeness,
        )
        self._step_s = 1 / fps
        self._time_s = -np.inf

    def update(self, detections: Detections, time_s: float) -> Detections:
        """The detections of the next frame, shown at `time_s`, with their `tracks`."""
        self._time_s = time_s if time_s > self._time_s else self._time_s + self._step_s
        found = detections.to_supervision()
        found.data["row"] = np.arange(len(found))
        self._likeness.look(found.xyxy, detections.embeddings, self._byte_track.tracks)
        followed: Any = self._byte_track.update(found, timestamp=self._time_s)
        tracks = np.full(len(detections), -1, np.int32)
        if len(followed):  # Without rows it has no columns either.
            tracks[followed.data["row"]] = followed.tracker_id
        self._likeness.remember(tracks, self._byte_track.tracks)
        return replace(detections, tracks=tracks)


class _Likeness(BaseIoU):
    """Overlap of boxes; where embeddings are known, its mean with their cosine.

    ByteTrack asks about boxes alone: which embedding belongs to a box is found by the box's own numbers.
    """

    def __init__(self) -> None:
        self._overlap = IoU()
        self._seen: dict[bytes, np.ndarray] = {}
        self._embeddings: np.ndarray | None = None
        self._known: WeakKeyDictionary[Any, np.ndarray] = WeakKeyDictionary()
        self._tracklets: list[Any] = []

    def look(self, boxes: np.ndarray, embeddings: np.ndarray | None, tracklets: list[Any]) -> None:
        """Takes what the next comparisons are about."""
        self._embeddings = embeddings
        self._seen = {} if embeddings is None else dict(zip(map(_key, boxes), embeddings, strict=True))
        self._tracklets = list(tracklets)

    def remember(self, tracks: np.ndarray, tracklets: list[Any]) -> None:
        """Keeps the embeddings of those that have been given an identity."""
        if self._embeddings is None:
            return
        rows = {track: row for row, track in enumerate(tracks.tolist()) if track >= 0}
        for tracklet in tracklets:
            row = rows.get(tracklet.tracker_id)
            if row is not None:
                new = self._embeddings[row]
                mixed = MEMORY * self._known.get(tracklet, new) + (1 - MEMORY) * new
                self._known[tracklet] = mixed / max(float(np.linalg.norm(mixed)), 1e-12)

    def _compute(self, boxes_1: np.ndarray, boxes_2: np.ndarray) -> np.ndarray:
        """Likeness of boxes [N, 4] where tracks are expected and boxes [M, 4] that were found: [N, M]."""
        likeness = np.asarray(self._overlap.compute(boxes_1, boxes_2), np.float64)
        if not self._seen:
            return likeness
        expected = {_key(tracklet.get_state_bbox()): tracklet for tracklet in self._tracklets}
        found = [self._seen[_key(box)] for box in boxes_2]
        for row, box in enumerate(boxes_1):
            known = self._known.get(expected[_key(box)])
            if known is None:
                continue
            cosines = np.array(found) @ known
            near = _distances(box, boxes_2) <= REACH * np.hypot(*(box[2:] - box[:2]))
            likeness[row] = np.where(
                (cosines >= SAME) & near, (likeness[row] + cosines) / 2, likeness[row] / 2
            )
        return likeness


def _key(box: np.ndarray) -> bytes:
    return np.asarray(box, np.float64).tobytes()


def _distances(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Of the boxes' [M, 4] centres from that of a box [4], pixels [M]."""
    offsets = (boxes[:, :2] + boxes[:, 2:] - box[:2] - box[2:]) / 2
    return np.hypot(offsets[:, 0], offsets[:, 1])
