#!/usr/bin/env python3
"""Detects objects in pictures and videos through a Triton server: table, JSON, drawings."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from clients import coco, options, output, sources
from clients.client import CenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, SourceError, UnavailableError
from clients.sources import Frame, Picture, Video

EXAMPLES = """examples:
  detect.py cat.jpg --output-dir out
  detect.py 'pictures/**/*.jpg' --json out.json
  detect.py clip.mp4 --output-dir out --json clip.jsonl
  detect.py rtsp://camera/stream --json -          one line of JSON per frame
  curl -s https://example.org/cat.jpg | detect.py - --json -
"""


def main() -> int:
    """Runs the command line; returns the exit code: 0, or 1 if any picture failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="file, folder, pattern, '-' (one picture), video, frame_%%04d.png, camera number, stream's URL",
    )
    parser.add_argument("--threshold", type=options.threshold, help="lowest score (default: the server's)")
    parser.add_argument(
        "--output-dir", type=Path, metavar="DIR", help="write drawings and annotated videos here"
    )
    parser.add_argument(
        "--json", metavar="FILE", help="write the detections; '-': to standard output, without a table"
    )
    parser.add_argument(
        "--json-format",
        choices=["list", "lines", "coco"],
        help="default: list, or lines for FILE.jsonl and for streams",
    )
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO file whose image and category ids '--json-format coco' uses",
    )
    options.add_connection_options(parser)
    arguments = parser.parse_args()
    console = Console(stderr=True, highlight=False)
    with options.one_line_errors("detect.py", console) as outcome:
        run = Run(parser, arguments, console)
        with run.open():
            outcome.code = run.detect()
    return outcome.code


class Run:
    """One call of the program."""

    def __init__(
        self, parser: argparse.ArgumentParser, arguments: argparse.Namespace, console: Console
    ) -> None:
        self._arguments = arguments
        self._errors = console
        found = list(sources.find(arguments.sources))
        self._pictures = [source for source in found if isinstance(source, Picture)]
        self._videos = [source for source in found if isinstance(source, Video)]
        self._form = arguments.json_format or self._default_form()
        if self._form == "coco" and self._videos:
            parser.error("--json-format coco is for pictures: COCO's results have no frames")
        self._folder = output.OutputFolder(arguments.output_dir) if arguments.output_dir else None
        self._annotations = coco.Annotations.read(arguments.annotations) if arguments.annotations else None
        self._summary = output.Summary()
        self._failed = 0
        self._client: CenterNetClient
        self._write: output.Entries
        self._client_context = options.client(parser, arguments)

    def _default_form(self) -> str:
        lines = str(self._arguments.json).endswith(".jsonl") or any(video.live for video in self._videos)
        return "lines" if lines else "list"

    @contextmanager
    def open(self) -> Iterator[None]:
        """The server and the JSON file, for the time of the `with`."""
        path = self._arguments.json
        with ExitStack() as stack:
            self._client = stack.enter_context(self._client_context)
            self._client.check_ready()
            self._write = stack.enter_context(
                output.json_writer(path, self._form) if path else nullcontext(lambda entries: None)
            )
            yield

    def detect(self) -> int:
        """Works through all sources and prints the table."""
        tables = self._arguments.json != "-"
        console = Console(highlight=False)
        alone = len(self._pictures) == 1 and not self._videos
        if self._pictures:
            self._detect_pictures(console if alone and tables else None)
        for video in self._videos:
            self._detect_video(video)
        if tables and self._summary.table.row_count and not alone:
            console.print(self._summary.table)
        return 1 if self._failed else 0

    def _detect_pictures(self, console: Console | None) -> None:
        total = len(self._pictures)
        with output.progress(self._errors, "pictures", total) as advance:
            for number, (picture, detections, error) in enumerate(
                self._client.detect_many(
                    self._pictures, load=Picture.read, threshold=self._arguments.threshold
                )
            ):
                advance()
                if detections is None:
                    self._report(picture.name, error, done=number, total=total)
                    continue
                try:
                    self._write(self._picture_entries(picture, detections))
                    if self._folder:
                        self._draw(self._folder, picture, detections)
                except (CenterNetError, OSError) as problem:
                    self._report(picture.name, problem, done=number, total=total)
                if console:
                    console.print(output.detections_table(picture.name, detections))
                self._summary.add(picture.name, Counter(detections.labels))

    def _picture_entries(self, picture: Picture, detections: Detections) -> list[dict[str, Any]]:
        if self._form != "coco":
            return [output.entry(picture.name, detections)]
        if self._annotations is None:
            # COCO's convention: files are named by their ids, the first category is 1.
            stem = picture.relative.stem
            image_id = int(stem) if stem.isdecimal() else picture.relative.name
            return coco.results(image_id, detections, category_id=lambda _, class_id: class_id + 1)
        image_ids = self._annotations.image_ids
        for name in (picture.relative.as_posix(), picture.relative.name):
            if name in image_ids:
                return coco.results(image_ids[name], detections, category_id=coco.by_name(self._annotations))
        raise SourceError(f"{self._annotations.path} has no such picture")

    def _draw(self, folder: output.OutputFolder, picture: Picture, detections: Detections) -> None:
        from centernet_image import ImageError, Limits, decode

        from clients.drawing import draw

        try:
            # The server has already accepted the picture within limits of its own.
            limits = Limits(max_bytes=sources.MAX_BYTES, max_pixels=2**30, min_side=1)
            pixels = decode(picture.read(), limits)
        except ImageError as error:
            raise SourceError(f"cannot draw: {error}") from error
        folder.save(draw(pixels, detections), picture.relative, picture.path)

    def _detect_video(self, video: Video) -> None:
        labels: Counter[str] = Counter()
        frames = 0
        try:
            with video.open() as stream, ExitStack() as stack:
                advance = stack.enter_context(output.progress(self._errors, video.name, stream.frame_count))
                show = None
                if self._folder:
                    source = Path(video.address) if isinstance(video.address, str) else None
                    path = self._folder.name(video.relative, source)
                    show = stack.enter_context(output.video_writer(path, stream.fps))
                # Ctrl-C is how a live stream ends: what it has given is kept.
                if video.live:
                    stack.enter_context(suppress(KeyboardInterrupt))
                for frame, detections, error in self._client.detect_many(
                    stream, load=_pixels, threshold=self._arguments.threshold
                ):
                    advance()
                    frames += 1
                    if detections is None:
                        self._report(f"{video.name} frame {frame.number}", error, done=frames - 1)
                    else:
                        time_s = round(frame.time_s, 3)
                        self._write([output.entry(video.name, detections, frame=frame.number, time_s=time_s)])
                        labels.update(detections.labels)
                    if show:
                        from clients.drawing import draw

                        show(frame.pixels if detections is None else draw(frame.pixels, detections))
        except SourceError as error:
            self._report(video.name, error)
        else:
            self._summary.add(video.name, labels, frames=frames)

    def _report(
        self, name: str, error: BaseException | None, *, done: int = 0, total: int | None = None
    ) -> None:
        self._failed += 1
        if isinstance(error, UnavailableError):
            # The retries are used up: the others would fail alike, one long wait after the other.
            of = f"{done} of {total}" if total else f"{done}"
            raise UnavailableError(
                f"the server has gone after {of} {'pictures' if total else 'frames'}: {error}"
            )
        self._errors.print(f"detect.py: {name}: {error}", markup=False, soft_wrap=True)


def _pixels(frame: Frame) -> Any:
    return frame.pixels


if __name__ == "__main__":
    sys.exit(main())
