#!/usr/bin/env python3
"""Detects objects in pictures and videos through a Triton server: table, JSON, drawings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np

from clients import coco, options, output, sources
from clients.annotations import Annotations, Id
from clients.blocking import CenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, SourceError
from clients.results import FATAL, Results, failure
from clients.sources import Picture
from clients.video.run import VideoRun
from clients.video.source import Video

EXAMPLES = """examples:
  detect.py cat.jpg --output-dir out
  detect.py 'pictures/**/*.jpg' --json out.json
  detect.py clip.mp4 --output-dir out --json clip.jsonl
  detect.py a.mp4 b.mp4 --track --output-dir out   each with its own identities
  detect.py rtsp://camera/stream --json -          one line of JSON per frame
  curl -s https://example.org/cat.jpg | detect.py - --json -
"""


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
    parser.add_argument(
        "--track", action="store_true", help="follow objects through videos: identities in results and copies"
    )
    options.add_connection_options(parser)
    arguments = parser.parse_args()
    if arguments.json_format and not arguments.json:
        parser.error("--json-format belongs to --json")
    if arguments.annotations and arguments.json_format != "coco":
        parser.error("--annotations belongs to --json-format coco")
    with options.one_line_errors("detect.py") as program, ExitStack() as stack:
        found = list(sources.find(arguments.sources, program.say))
        videos = [source for source in found if isinstance(source, Video)]
        lines = arguments.json and arguments.json.suffix == ".jsonl"
        streams = lines or any(video.live for video in videos)
        read = (source.path for source in found)
        options.check_not_read(parser, "--json", arguments.json, [arguments.annotations, *read])
        form = arguments.json_format or ("lines" if streams else "list")
        if form == "coco" and videos:
            parser.error("--json-format coco is for pictures: COCO's results have no frames")
        annotations = Annotations.read(arguments.annotations) if arguments.annotations else None
        if arguments.track and not videos:
            parser.error("--track is for videos: pictures have no order")
        client = stack.enter_context(options.client(parser, arguments))
        client.check_ready()
        results = Results(program)
        if arguments.json:
            results.write = stack.enter_context(output.json_writer(arguments.json, form))
        if arguments.output_dir:
            results.folder = output.OutputFolder(arguments.output_dir)
        entries = partial(coco_entries, annotations) if form == "coco" else list_entries
        pictures = [source for source in found if isinstance(source, Picture)]
        detect_pictures(client, pictures, results, entries, arguments.threshold)
        run = VideoRun(client, results, threshold=arguments.threshold, track=arguments.track)
        run.detect(videos)
        if arguments.json != output.STANDARD_OUTPUT:
            results.print_tables()
        program.code = 1 if results.failed else 0
    return program.code


def detect_pictures(
    client: CenterNetClient,
    pictures: list[Picture],
    results: Results,
    entries: Callable[[Picture, Detections], list[Any]],
    threshold: float | None,
) -> None:
    """Works through pictures; those that fail are a line each."""
    # What a drawing needs of pictures that cannot be read again.
    kept: dict[int, bytes] = {}

    def load(picture: Picture) -> bytes:
        content = picture.read()
        if results.folder and picture.passing:
            kept[id(picture)] = content
        return content

    answers = client.detect_many(pictures, load=load, threshold=threshold)
    with output.progress(results.console, "pictures", len(pictures)) as advance:
        for number, (picture, detections, error) in enumerate(answers):
            content = kept.pop(id(picture), None)
            try:
                if detections is None:
                    raise failure(client, error, f"{number} of {len(pictures)} pictures")
                results.add_picture(picture.name, detections)
                results.add(entries(picture, detections))
                if results.folder:
                    drawing = _draw(content or picture.read(), detections, client.camera)
                    results.folder.save(drawing, picture.relative, picture.path)
            except FATAL:
                raise
            except (CenterNetError, OSError) as problem:
                results.report(picture.name, problem)
            advance()


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


def _draw(content: bytes, detections: Detections, camera: np.ndarray | None) -> np.ndarray:
    from centernet_image.codecs.common import ImageError
    from centernet_image.decode import Limits, decode

    from clients.drawing import draw, enlarged

    # The server has already accepted the picture within limits of its own.
    limits = Limits(max_bytes=sources.MAX_BYTES, max_pixels=2**30, min_side=1)
    try:
        return draw(*enlarged(decode(content, limits), detections, camera))
    except ImageError as error:
        raise SourceError(f"cannot draw: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
