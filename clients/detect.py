#!/usr/bin/env python3
"""Detects objects in pictures and videos through a Triton server: table, JSON, drawings."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from clients import coco, options, output, sources
from clients.annotations import Annotations, Id
from clients.client import CenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, OutputError, SourceError, UnavailableError
from clients.sources import Picture
from clients.video import Frame, OpenVideo, Video, VideoWriter

EXAMPLES = """examples:
  detect.py cat.jpg --output-dir out
  detect.py 'pictures/**/*.jpg' --json out.json
  detect.py clip.mp4 --output-dir out --json clip.jsonl
  detect.py rtsp://camera/stream --json -          one line of JSON per frame
  curl -s https://example.org/cat.jpg | detect.py - --json -
"""

FATAL = (BrokenPipeError, OutputError, UnavailableError)
"""What ends the run: the other pictures would fail alike."""


def main() -> int:
    """Runs the command line; returns the exit code: 0, or 1 if any picture failed."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s SOURCE... [--url HOST:PORT] [--output-dir DIR] [--json FILE] [options]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, pattern, '-' (one picture), video, frame_%%04d.png, camera number, URL",
    )
    parser.add_argument("--threshold", type=options.threshold, help="lowest score (default: the server's)")
    parser.add_argument(
        "--output-dir",
        type=options.new_folder,
        metavar="DIR",
        help="write drawings and annotated videos here; small pictures are drawn enlarged",
    )
    parser.add_argument(
        "--json",
        type=options.new_file,
        metavar="FILE",
        help="write the detections; '-': to standard output, without a table",
    )
    parser.add_argument(
        "--json-format",
        choices=["list", "lines", "coco"],
        help="default: list, or lines for FILE.jsonl and for streams",
    )
    parser.add_argument(
        "--annotations",
        type=options.file,
        metavar="FILE",
        help="COCO file whose image and category ids '--json-format coco' uses",
    )
    options.add_connection_options(parser)
    arguments = parser.parse_args()
    if arguments.json_format and not arguments.json:
        parser.error("--json-format belongs to --json")
    if arguments.annotations and arguments.json_format != "coco":
        parser.error("--annotations belongs to --json-format coco")
    console = Console(stderr=True, highlight=False)
    with options.one_line_errors("detect.py", console) as outcome, ExitStack() as stack:
        note = partial(options.report, console, "detect.py")
        found = list(sources.find(arguments.sources, note))
        videos = [source for source in found if isinstance(source, Video)]
        lines = arguments.json and arguments.json.suffix == ".jsonl"
        streams = lines or any(video.live for video in videos)
        form = arguments.json_format or ("lines" if streams else "list")
        if form == "coco" and videos:
            parser.error("--json-format coco is for pictures: COCO's results have no frames")
        annotations = Annotations.read(arguments.annotations) if arguments.annotations else None
        client = stack.enter_context(options.client(parser, arguments))
        client.check_ready()
        run = Run(client, console, arguments.threshold)
        if arguments.json:
            run.write = stack.enter_context(output.json_writer(arguments.json, form))
        if form == "coco":
            run.entries = partial(coco_entries, annotations)
        if arguments.output_dir:
            run.folder = output.OutputFolder(arguments.output_dir)
        run.detect_pictures([source for source in found if isinstance(source, Picture)])
        for video in videos:
            run.detect_video(video)
        if arguments.json != output.STANDARD_OUTPUT:
            run.print_tables()
        outcome.code = 1 if run.failed else 0
    return outcome.code


class Run:
    """One call of the program.

    Attributes:
        write: Appends to the JSON file.
        entries: Makes a picture's JSON.
        folder: Where drawings go, or None.
        failed: Pictures that could not be done.
    """

    def __init__(self, client: CenterNetClient, errors: Console, threshold: float | None) -> None:
        self.write: Callable[[list[Any]], None] = lambda entries: None
        self.entries: Callable[[Picture, Detections], list[Any]] = list_entries
        self.folder: output.OutputFolder | None = None
        self.failed = 0
        self._client = client
        self._errors = errors
        self._threshold = threshold
        self._tables = output.Tables()

    def print_tables(self) -> None:
        """Prints what was found: one picture's boxes, or a row for each of many."""
        console = Console(highlight=False)
        if table := self._tables.table():
            console.print(table)
        if self.folder:
            console.print(
                f"drawings in {output.printable(str(self.folder.path))}", markup=False, soft_wrap=True
            )

    def detect_pictures(self, pictures: list[Picture]) -> None:
        """Works through pictures; those that fail are a line each."""
        answers = self._client.detect_many(pictures, load=Picture.read, threshold=self._threshold)
        with output.progress(self._errors, "pictures", len(pictures)) as advance:
            for number, (picture, detections, error) in enumerate(answers):
                try:
                    if detections is None:
                        raise self._failure(error, f"{number} of {len(pictures)} pictures")
                    self._tables.add(picture.name, detections)
                    self.write(self.entries(picture, detections))
                    if self.folder:
                        drawing = _draw(picture, detections)
                        self.folder.save(drawing, picture.relative, picture.path)
                except FATAL:
                    raise
                except (CenterNetError, OSError) as problem:
                    self._report(picture.name, problem)
                advance()

    def detect_video(self, video: Video) -> None:
        """Works through a video's frames, in order."""
        labels: Counter[str] = Counter()
        frames = 0
        try:
            with video.open() as stream, ExitStack() as stack:
                advance = stack.enter_context(output.progress(self._errors, video.name, stream.frame_count))
                copy = self._copy(video, stream)
                if copy:
                    stack.enter_context(copy)
                # Ctrl-C is how a live stream ends: what it has given is kept.
                if video.live:
                    stack.enter_context(suppress(KeyboardInterrupt))
                answers = self._client.detect_many(stream, load=Frame.picture, threshold=self._threshold)
                for frame, detections, error in answers:
                    if detections is None:
                        failure = self._failure(error, f"{frames} frames")
                        self._report(f"{video.name} frame {frame.number}", failure)
                    else:
                        time_s = round(frame.time_s, 3)
                        self.write([output.entry(video.name, detections, frame=frame.number, time_s=time_s)])
                        labels.update(detections.labels)
                    if copy and not copy.broken:
                        from clients.drawing import draw

                        drawing = frame.pixels if detections is None else draw(frame.pixels, detections)
                        copy.append(drawing, frame.time_s)
                    frames += 1
                    advance()
        except FATAL:
            raise
        except (CenterNetError, OSError) as error:
            self._report(video.name, error)
        else:
            self._tables.add_video(video.name, labels, frames=frames)
            if stream.problem:
                self._report(video.name, SourceError(stream.problem))

    def _copy(self, video: Video, stream: OpenVideo) -> VideoWriter | None:
        """Where frames are drawn, if they are to be. If that fails it is a line, and the results go on."""
        report = partial(self._report, video.name)
        if self.folder is None:
            return None
        try:
            path = self.folder.name(video.relative, video.path)
        except CenterNetError as error:
            report(error)
            return None
        return VideoWriter(path, stream, report)

    def _failure(self, error: Exception | None, done: str) -> Exception:
        options.end_if_gone(self._client, error, done)
        return error or CenterNetError("no answer")

    def _report(self, name: str, error: Exception) -> None:
        self.failed += 1
        options.report(self._errors, "detect.py", f"{name}: {error}")


def list_entries(picture: Picture, detections: Detections) -> list[Any]:
    """A picture as one JSON object."""
    return [output.entry(picture.name, detections)]


def coco_entries(annotations: Annotations | None, picture: Picture, detections: Detections) -> list[Any]:
    """A picture's detections as COCO's results, with the ids that `annotations` has for file and class names.

    Without annotations the ids follow COCO's habits: a file is named by its id, and the first category is 1.

    Raises:
        CenterNetError: The annotations do not know the picture or a class.
    """
    if annotations is None:
        stem = picture.relative.stem
        own: Id = int(stem) if stem.isascii() and stem.isdecimal() else picture.relative.name
        return coco.results(own, detections, category_id=lambda _, class_id: class_id + 1)
    image_id = annotations.image_id(picture.relative)
    if image_id is None:
        raise SourceError(f"{annotations.path} has no such picture")
    return coco.results(image_id, detections, category_id=coco.by_name(annotations))


def _draw(picture: Picture, detections: Detections) -> np.ndarray:
    from centernet_image.codecs.common import ImageError
    from centernet_image.decode import Limits, decode

    from clients.drawing import draw, enlarged

    # The server has already accepted the picture within limits of its own.
    limits = Limits(max_bytes=sources.MAX_BYTES, max_pixels=2**30, min_side=1)
    try:
        return draw(*enlarged(decode(picture.read(), limits), detections))
    except ImageError as error:
        raise SourceError(f"cannot draw: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
