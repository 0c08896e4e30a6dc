#!/usr/bin/env python3
"""Measures the average precision of what a Triton server answers, by COCO's protocol."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from centernet_image import contract
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from clients import coco, differences, options, output
from clients.annotations import Annotations, Id, locate
from clients.blocking import CenterNetClient
from clients.client import Answer
from clients.detections import Detections
from clients.errors import CenterNetError
from clients.progress_file import ProgressFile
from clients.sources import Picture

THRESHOLD = 0.01
SAME_SCORE = 0.005
"""Two answers to one picture may differ so much: batches of another size are summed in another order."""

PROTOCOL = """protocol:
  CenterNet's single-scale test at the network's fixed input size (its --fix_res): the same warp,
  the 100 best detections, no flip, boxes and scores rounded to two decimals as the original writes
  them. A run that was interrupted goes on where it stopped.
"""


def main() -> int:
    """Runs the command line; returns the exit code: 0, or 1 if any picture failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=PROTOCOL, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--annotations",
        type=options.file,
        required=True,
        metavar="FILE",
        help="COCO instances or key-point file",
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of its pictures")
    parser.add_argument(
        "--output",
        type=options.new_file,
        default=Path("out/evaluation.json"),
        metavar="FILE",
        help="COCO results (default: %(default)s)",
    )
    parser.add_argument("--limit", type=options.count, metavar="N", help="only the first N pictures")
    parser.add_argument(
        "--threshold", type=options.threshold, default=THRESHOLD, help="lowest score (default: %(default)s)"
    )
    parser.add_argument("--unrounded", action="store_true", help="keep boxes and scores as they are")
    parser.add_argument(
        "--reference",
        type=options.file,
        metavar="CHECKPOINT",
        help="evaluate this in PyTorch, too, and compare",
    )
    parser.add_argument("--arch", help="the checkpoint's architecture (default: inferred)")
    for name in ("--mean", "--std"):
        parser.add_argument(name, metavar="B,G,R", help="the checkpoint's own, as for export.to_onnx")
    parser.add_argument("--fit", choices=contract.FITS, help="the same")
    options.add_connection_options(parser)
    arguments = parser.parse_args()
    own = (arguments.arch, arguments.mean, arguments.std, arguments.fit)
    if any(own) and not arguments.reference:
        parser.error("--arch, --mean, --std and --fit belong to --reference")
    if not arguments.images.is_dir():
        parser.error(f"--images: no such folder: {arguments.images}")
    if arguments.output.suffix == ".jsonl":
        parser.error(f"--output: {arguments.output} is where progress is kept, expected FILE.json")
    with options.one_line_errors("evaluate.py") as program, options.client(parser, arguments) as client:
        evaluation = Evaluation(arguments, client, program)
        read = [arguments.annotations, arguments.reference, *evaluation.paths()]
        options.check_not_read(parser, "--output", arguments.output, read)
        program.code = evaluation.run()
    return program.code


class Evaluation:
    """One run over an annotation file."""

    def __init__(
        self, arguments: argparse.Namespace, client: CenterNetClient, program: options.Program
    ) -> None:
        self._arguments = arguments
        self._client = client
        self._program = program
        self._annotations = Annotations.read(arguments.annotations)
        ids = list(self._annotations.image_ids.items())[: arguments.limit]
        self._pictures = {
            image_id: Picture(name, locate(arguments.images, name), Path(name)) for name, image_id in ids
        }
        if not self._pictures:
            raise CenterNetError(f"{arguments.annotations} lists no pictures, expected some under 'images'")
        self._failed: set[Id] = set()

    def paths(self) -> list[Path | None]:
        """The pictures."""
        return [picture.path for picture in self._pictures.values()]

    def run(self) -> int:
        """Asks the server about every picture, evaluates, prints, and returns the exit code."""
        arguments = self._arguments
        if self._annotations.left_out:
            self._program.say(f"{arguments.annotations}: {self._annotations.left_out}")
        self._client.check_ready()
        network = self._client.metadata(f"{arguments.model}_network")
        settings = {
            "annotations": hashlib.sha256(arguments.annotations.read_bytes()).hexdigest(),
            "threshold": arguments.threshold,
            "model": {key: network[key] for key in ("name", "versions", "platform", "inputs", "outputs")},
        }
        rows = {}
        with ProgressFile(arguments.output.with_suffix(".jsonl"), settings) as served:
            self._check_same_model(served)
            self._collect("server", served, self._ask)
            rows["server"] = self._rows(served)
            if arguments.reference:
                rows["PyTorch"] = self._reference(settings)
            self._write(rows["server"])
            if not self._failed:
                served.remove()
        if len(self._failed) == len(self._pictures):
            count = len(self._pictures)
            raise CenterNetError(f"none of {count} pictures could be evaluated, see the lines above")
        self._print(rows)
        return 1 if self._failed else 0

    def _reference(self, settings: dict[str, Any]) -> list[dict[str, Any]]:
        from export import normalisation
        from export.reference_detector import Reference

        arguments = self._arguments
        shapes = {tensor["name"]: tensor["shape"] for tensor in settings["model"]["outputs"]}
        reference = Reference(
            arguments.reference,
            arch=arguments.arch,
            frame_size=self._client.frame_size(),
            top_k=int(shapes[contract.SCORES.name][1]),
            annotations=self._annotations,
            normalisation=normalisation.parse(arguments.mean, arguments.std),
            fit=arguments.fit,
            camera=self._client.camera,
        )

        def answers(pictures: Iterable[Picture]) -> Iterator[Answer[Picture]]:
            for picture in pictures:
                try:
                    found = reference.detect(picture.read(), threshold=arguments.threshold)
                    yield Answer(picture, found, None)
                except CenterNetError as error:
                    yield Answer(picture, None, error)

        settings = {**settings, "checkpoint": reference.sha256}
        with ProgressFile(arguments.output.with_suffix(".reference.jsonl"), settings) as computed:
            self._collect("PyTorch", computed, answers, beside=self._beside)
            if not self._failed:
                computed.remove()
            return self._rows(computed)

    def _beside(self, picture: Picture, expected: Detections) -> list[dict[str, float]]:
        """How far the server's answer is from one that has more than boxes; see `differences.of`."""
        if not expected.extras.keys() & differences.UNITS.keys():
            return []
        found = self._client.detect(picture.read(), threshold=self._arguments.threshold)
        return differences.of(found, expected)

    def _ask(self, pictures: Iterable[Picture]) -> Iterator[Answer[Picture]]:
        return self._client.detect_many(pictures, load=Picture.read, threshold=self._arguments.threshold)

    def _collect(
        self,
        name: str,
        progress_file: ProgressFile,
        ask: Callable[[Iterable[Picture]], Iterator[Answer[Picture]]],
        *,
        beside: Callable[[Picture, Detections], list[dict[str, float]]] = lambda *_: [],
    ) -> None:
        """Asks about the pictures that the file does not have yet."""
        category_id = coco.by_name(self._annotations)
        ids = {picture: image_id for image_id, picture in self._pictures.items()}
        missing = [picture for picture in ids if ids[picture] not in progress_file.done]
        done = len(ids) - len(missing)
        with output.progress(self._program.console, name, len(ids), completed=done) as advance:
            for picture, detections, error in ask(missing):
                advance()
                if detections is not None:
                    rows = coco.results(ids[picture], detections, category_id=category_id)
                    for row, gaps in zip(rows, beside(picture, detections), strict=False):
                        row["differences"] = gaps
                    progress_file.add(ids[picture], rows)
                else:
                    progress = f"{len(progress_file.done)} of {len(ids)} pictures, run again to go on"
                    options.end_if_gone(self._client, error, progress)
                    self._failed.add(ids[picture])
                    self._program.say(f"{picture.name}: {error}")

    def _check_same_model(self, served: ProgressFile) -> None:
        """Asks again about a picture that an earlier run recorded: metadata do not tell weights apart."""
        image_id = next((key for key, rows in served.done.items() if rows and key in self._pictures), None)
        if image_id is None:
            return
        picture = self._pictures[image_id]
        now = self._client.detect(picture.read(), threshold=self._arguments.threshold).scores
        then = [row["score"] for row in served.done[image_id]]
        best = list(zip(now, then, strict=False))[:10]
        if not best or max(abs(one - other) for one, other in best) > SAME_SCORE:
            raise CenterNetError(
                f"{served.path} is of another model, whose answer to {picture.name} differs: "
                "delete it to start anew"
            )

    def _rows(self, progress_file: ProgressFile) -> list[dict[str, Any]]:
        rows = [row for image_id in self._pictures for row in progress_file.done.get(image_id, [])]
        return rows if self._arguments.unrounded else [coco.rounded(row) for row in rows]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        with output.beside(self._arguments.output) as part:
            part.write_text(json.dumps(rows), encoding="utf-8")

    def _print(self, rows: dict[str, list[dict[str, Any]]]) -> None:
        console = Console(highlight=False)
        console.print(self._table(rows, "bbox"))
        posed = {name: own for name, own in rows.items() if own and "keypoints" in own[0]}
        if self._annotations.joints and posed:
            console.print(self._table(posed, "keypoints"))
        compared = [row["differences"] for row in rows.get("PyTorch", []) if "differences" in row]
        if compared:
            console.print(_differences(compared))

    def _table(self, rows: dict[str, list[dict[str, Any]]], kind: str) -> Table:
        answered = self._pictures.keys() - self._failed
        values = {
            name: coco.average_precision(self._arguments.annotations, own, answered, kind)
            for name, own in rows.items()
        }
        metrics = coco.METRICS[kind]
        of = f" of {len(self._pictures)}; the others failed, run again to try them" if self._failed else ""
        table = Table("key points" if kind == "keypoints" else "", *metrics, box=SIMPLE_HEAD)
        table.title = f"{self._arguments.annotations.name}, {len(answered)} pictures{of}"
        for name, own in values.items():
            table.add_row(name, *(f"{value:.4f}" if value >= 0 else "-" for value in own.values()))
        if len(values) == 2:
            served, computed = values.values()
            table.add_row(
                "difference",
                *(
                    f"{served[metric] - computed[metric]:+.4f}" if served[metric] >= 0 else "-"
                    for metric in metrics
                ),
            )
        return table


def _differences(compared: list[dict[str, float]]) -> Table:
    alone = f"{sum(not gaps for gaps in compared)} of {len(compared)} without a counterpart"
    table = Table("difference", "unit", "detections", "median", "99 %", "largest", box=SIMPLE_HEAD)
    table.title = f"server and PyTorch, detection by detection; {alone}"
    for name, (count, *values) in differences.summary(compared).items():
        table.add_row(name, differences.UNITS[name], str(count), *(f"{value:.2g}" for value in values))
    return table


if __name__ == "__main__":
    sys.exit(main())
