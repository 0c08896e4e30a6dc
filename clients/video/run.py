"""Detects in videos, several at once: each in its own order, with its own identities and copy."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

from clients import output
from clients.blocking import CenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, SourceError
from clients.results import FATAL, Results, failure
from clients.video.live import Latest
from clients.video.source import Frame, OpenVideo, Video
from clients.video.writer import VideoWriter

if TYPE_CHECKING:
    import numpy as np
    import supervision

    from clients.video.tracking import Tracker


class StoppedError(Exception):
    """A file that another one's end, or Ctrl-C, has stopped before its own."""


class _OneVideo:
    """What is kept of one video while its frames are answered."""

    def __init__(self, video: Video, stream: OpenVideo, results: Results, camera: np.ndarray | None) -> None:
        self.frames = 0
        self.tracker: Tracker | None = None
        self.copy: VideoWriter | None = None
        self._video = video
        self._stream = stream
        self._results = results
        self._camera = camera
        self._traces: supervision.TraceAnnotator | None = None
        self._labels: Counter[str] = Counter()
        self._identities: set[int] = set()

    def add(self, frame: Frame, detections: Detections | None) -> None:
        """Writes a frame's results, and its drawing; None if it could not be done."""
        self.frames += 1
        if detections is not None:
            if self.tracker:
                detections = self.tracker.update(detections, frame.time_s)
            time_s = round(frame.time_s, 3)
            name = self._video.name
            self._results.add([output.entry(name, detections, frame=frame.number, time_s=time_s)])
            self._labels.update(detections.labels)
            if detections.tracks is not None:
                self._identities.update(detections.tracks[detections.tracks >= 0].tolist())
        if self.copy and not self.copy.broken:
            from clients import drawing

            self._traces = self._traces or drawing.traces(*frame.pixels.shape[:2])
            pixels = frame.pixels
            if detections is not None:
                pixels = drawing.draw(pixels, detections, camera=self._camera, traces=self._traces)
            self.copy.append(pixels, frame.time_s)

    def finish(self, dropped: int) -> None:
        """Says what was found, and what is missing."""
        counts = {"frames": self.frames, "identities": len(self._identities)}
        self._results.add_video(self._video.name, self._labels, **counts)
        if dropped:
            self._results.note(
                f"{self._video.name}: {dropped} frames dropped, which came faster than they were answered"
            )
        if self._stream.problem:
            self._results.report(self._video.name, SourceError(self._stream.problem))


class VideoRun:
    """Asks one server about the frames of many videos; they share its batches.

    Live streams run all at once, for they do not wait; of files as many as requests may be in flight.

    Args:
        client: The server's.
        results: Where everything goes.
        threshold: Lowest score, or None for the server's own.
        track: Whether to give identities where the network does not.
    """

    def __init__(
        self, client: CenterNetClient, results: Results, *, threshold: float | None, track: bool
    ) -> None:
        self._client = client
        self._results = results
        self._threshold = threshold
        self._track = track
        self._stop = threading.Event()
        self._open = 0
        self._lock = threading.Lock()

    def detect(self, videos: Sequence[Video]) -> None:
        """Works through the videos. Those that fail are a line each and do not end the others.

        Raises:
            KeyboardInterrupt: Ctrl-C, unless all are live streams: for those it is how they end.
            BrokenPipeError, OutputError, UnavailableError: There is no use in going on.
        """
        if not videos:
            return
        first_live = sorted(videos, key=lambda video: not video.live)
        live = sum(video.live for video in videos)
        at_once = live + min(len(videos) - live, self._client.concurrency)
        interrupted = False
        with output.bars(self._results.console) as add_bar, ThreadPoolExecutor(at_once) as pool:
            jobs = [pool.submit(self._one, video, add_bar) for video in first_live]
            try:
                wait(jobs, return_when=FIRST_EXCEPTION)
            except KeyboardInterrupt:
                interrupted = True
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
        unfinished = [job for job in jobs if job.cancelled() or isinstance(job.exception(), StoppedError)]
        for job in jobs:
            if job not in unfinished:
                job.result()
        if interrupted and unfinished:
            raise KeyboardInterrupt

    def _one(self, video: Video, add_bar: output.AddBar) -> None:
        with self._lock:
            self._open += 1
        try:
            self._detect(video, add_bar)
        except (*FATAL, StoppedError):
            raise
        except (CenterNetError, OSError) as error:
            self._results.report(video.name, error)
        finally:
            with self._lock:
                self._open -= 1

    def _share(self) -> int:
        return max(1, self._client.concurrency // max(1, self._open))

    def _detect(self, video: Video, add_bar: output.AddBar) -> None:
        with video.open() as stream, ExitStack() as stack:
            one = _OneVideo(video, stream, self._results, self._client.camera)
            one.tracker = self._tracker(stream)
            if copy := self._copy(video, stream):
                one.copy = stack.enter_context(copy)
            advance = stack.enter_context(add_bar(video.name, stream.frame_count))
            frames: Latest | OpenVideo = stream
            # A file behind a URL waits for its reader, a camera does not.
            if video.live and stream.frame_count is None:
                frames = stack.enter_context(Latest(stream, self._stop))
            answers = self._client.detect_many(
                self._until_stopped(video, frames),
                load=Frame.picture,
                threshold=self._threshold,
                video=True,
                share=self._share,
            )
            for frame, detections, error in answers:
                if detections is None:
                    problem = failure(self._client, error, f"{one.frames} frames")
                    self._results.report(f"{video.name} frame {frame.number}", problem)
                one.add(frame, detections)
                advance()
        one.finish(frames.dropped if isinstance(frames, Latest) else 0)

    def _until_stopped(self, video: Video, frames: Iterable[Frame]) -> Iterator[Frame]:
        for frame in frames:
            if self._stop.is_set():
                if video.live:
                    return
                raise StoppedError
            yield frame

    def _tracker(self, stream: OpenVideo) -> Tracker | None:
        if not self._track or self._client.signature().remembers:
            return None
        from clients.video.tracking import Tracker  # brings supervision, which takes more than a second

        return Tracker(stream.fps)

    def _copy(self, video: Video, stream: OpenVideo) -> VideoWriter | None:
        """Where frames are drawn, if they are to be. If that fails it is a line, and the results go on."""
        report = partial(self._results.report, video.name)
        if self._results.folder is None:
            return None
        try:
            path = self._results.folder.name(video.relative, video.path)
        except CenterNetError as error:
            report(error)
            return None
        return VideoWriter(path, stream, report)
