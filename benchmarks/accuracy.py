"""Measure what serving costs in accuracy: COCO's average precision, from PyTorch to INT8.

    python -m benchmarks.accuracy CHECKPOINT... --images DIR --annotations VAL --calibration-annotations TRAIN

Everything is measured on the same warp, with the 100 best detections from a score of 0.01 on. What is under
the output folder is not computed again: networks as ONNX files, and detections as COCO results.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from centernet_image import contract
from centernet_image.description import Description
from rich.console import Console
from rich.progress import track

from benchmarks import bootstrap, networks, report
from benchmarks.report import BenchmarkError
from benchmarks.triton_server import running
from clients import coco, local
from clients.errors import CenterNetError
from clients.local import LocalDetector
from export import to_onnx
from export.files import sha256, write_beside
from export.graphs import onnx_files
from export.graphs.surgery import apply, export_graph, import_graph
from export.plan import feed_dicts, precision, quantize
from export.reference_detector import Reference

THRESHOLD = 0.01
ROWS = ("onnxruntime", "server", "fp16", "int8", "sensitivity")
STDERR = Console(stderr=True)

Detect = Callable[[], list[dict[str, Any]]]
"""Runs something on all pictures and returns COCO results."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return report.run("benchmarks.accuracy", measure, options, CenterNetError, ValueError)


def measure(options: argparse.Namespace) -> None:
    """Measure what the options ask for and write the report.

    Raises:
        BenchmarkError: A picture would calibrate and evaluate, or a plan is of none of the checkpoints.
    """
    studies = [Study(checkpoint, options) for checkpoint in options.checkpoints]
    plans = {plan: json.loads(plan.with_suffix(".json").read_text(encoding="utf-8")) for plan in options.plan}
    for plan, facts in plans.items():
        if facts["checkpoint_sha256"] not in (study.sha256 for study in studies):
            raise BenchmarkError(f"{plan} was built from none of the checkpoints given")
    results = {
        "environment": report.environment(),
        "annotations": options.annotations.name,
        "pictures": len(studies[0].pictures),
        "calibration_pictures": len(studies[0].calibration),
        "checkpoints": [
            study.run({p: facts for p, facts in plans.items() if facts["checkpoint_sha256"] == study.sha256})
            for study in studies
        ],
    }
    report.write(options.output_dir, "accuracy", results, tables)
    print(tables(results))


class Study:
    """One checkpoint on one set of pictures.

    Attributes:
        sha256: Of the checkpoint.
        pictures: Paths of the pictures that evaluate, by their ids.
        calibration: Paths of those that calibrate.
    """

    def __init__(self, checkpoint: Path, options: argparse.Namespace) -> None:
        self._checkpoint, self._options = checkpoint, options
        self._annotations = coco.Annotations.read(options.annotations)
        self.sha256 = sha256(checkpoint)
        self.pictures = {
            image_id: options.images / name for name, image_id in self._annotations.image_ids.items()
        }
        names = list(coco.Annotations.read(options.calibration_annotations).image_ids)
        if both := self._annotations.image_ids.keys() & names:
            raise BenchmarkError(
                f"{len(both)} pictures, such as {min(both)}, are in {options.calibration_annotations} and in "
                f"{options.annotations}: calibrate on training pictures alone"
            )
        # Evenly spread: neighbours in a set are often alike.
        step = max(1, len(names) // options.calibration_pictures)
        self.calibration = [options.images / name for name in names[::step][: options.calibration_pictures]]
        self._folder = options.output_dir / f"{checkpoint.stem}-{self._digest()[:12]}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def run(self, plans: dict[Path, dict[str, Any]]) -> dict[str, Any]:
        """The average precision of everything that was asked for."""
        measured: dict[str, tuple[str, Detect]] = {
            "onnxruntime": ("ONNX Runtime, FP32", partial(self._onnxruntime, "fp32")),
            "server": ("Triton server, FP32", self._server),
            "fp16": ("ONNX Runtime, FP16", partial(self._onnxruntime, "fp16")),
            "int8": ("ONNX Runtime, INT8 and FP16", partial(self._onnxruntime, "int8")),
        }
        rows = [{"row": "PyTorch, FP32"} | self._precision("pytorch", self._pytorch)]
        for name, (title, detect) in measured.items():
            if name in self._options.rows:
                rows.append({"row": title} | self._precision(name, detect, against="pytorch"))
        for plan, facts in plans.items():
            title = f"TensorRT {facts['plan']['tensorrt']}, {facts['plan']['precision'].upper()}"
            detect = partial(self._tensorrt, plan)
            rows.append({"row": title} | self._precision(sha256(plan), detect, against="pytorch"))
        network = self._description()
        return {
            "checkpoint": self._checkpoint.name,
            "arch": network.arch,
            "input_size": network.input_size,
            "sha256": self.sha256,
            "rows": rows,
            "sensitivity": list(self._sensitivity()) if "sensitivity" in self._options.rows else [],
        }

    def _sensitivity(self) -> Iterator[dict[str, Any]]:
        """INT8 of one part of the network at a time, the rest in FP32."""
        base = self._precision("onnxruntime", partial(self._onnxruntime, "fp32"))
        yield {"group": "none", "layers": 0} | base
        for part, layers in _parts(import_graph(onnx.load(self._model("fp32")))).items():
            if layers:
                name = f"int8-{part}"
                values = self._precision(name, partial(self._onnxruntime, name), against="onnxruntime")
                yield {"group": part, "layers": len(layers)} | values

    def _precision(self, name: str, detect: Detect, *, against: str | None = None) -> dict[str, Any]:
        """AP, and with `against` the interval of its difference from another that was measured before."""
        path = self._folder / f"{name}.results.json"
        if not path.exists():
            print(f"{self._checkpoint.name}: {name}", file=sys.stderr)
            write_beside(path, json.dumps(detect()).encode())
        rows = json.loads(path.read_text(encoding="utf-8"))
        pictures = self.pictures.keys()
        values: dict[str, Any] = coco.average_precision(self._options.annotations, rows, pictures)
        if against is not None:
            base = json.loads((self._folder / f"{against}.results.json").read_text(encoding="utf-8"))
            values["AP_interval"] = bootstrap.ap_interval(self._options.annotations, rows, base, pictures)
        return values

    def _pytorch(self) -> list[dict[str, Any]]:
        return self._detect(
            Reference(
                self._checkpoint,
                arch=None,
                frame_size=self._options.input_size,
                annotations=self._annotations,
                normalisation=self._description().normalisation,
            )
        )

    def _onnxruntime(self, name: str) -> list[dict[str, Any]]:
        # Q/DQ as written: on some processors ONNX Runtime's integer kernels saturate; TensorRT's do not.
        as_written = {"session.disable_quant_qdq": "1"}
        network = local.onnxruntime_network(self._model(name), session=as_written)
        return self._detect(LocalDetector(network, self._description()))

    def _tensorrt(self, plan: Path) -> list[dict[str, Any]]:
        return self._detect(LocalDetector(local.tensorrt_network(plan), self._description()))

    def _server(self) -> list[dict[str, Any]]:
        """What `clients/evaluate.py` gets from a server of this network."""
        with tempfile.TemporaryDirectory() as folder:
            repository = networks.repository(self._model("fp32"), Path(folder, "repository"))
            output = Path(folder, "results.json")
            with running(repository) as server:
                options = [f"--annotations={self._options.annotations}", f"--images={self._options.images}"]
                options += [f"--threshold={THRESHOLD}", f"--output={output}", f"--url={server.grpc_url}"]
                command = [sys.executable, "-m", "clients.evaluate", "--unrounded", *options]
                if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
                    raise BenchmarkError("the server's answers could not be evaluated (above)")
            return json.loads(output.read_text(encoding="utf-8"))

    def _description(self) -> Description:
        return onnx_files.description(onnx.load(self._model("fp32")))

    def _detect(self, detector: LocalDetector) -> list[dict[str, Any]]:
        category_id = coco.by_name(self._annotations)
        rows = []
        for image_id, path in track(self.pictures.items(), "", console=STDERR, transient=True):
            found = detector.detect(path.read_bytes(), threshold=THRESHOLD)
            rows += coco.results(image_id, found, category_id=category_id)
        return rows

    def _model(self, name: str) -> Path:
        """The network as ONNX file: fp32, fp16, int8 as `export.to_plan` builds it, or int8-PART."""
        path = self._folder / f"{name}.onnx"
        if path.exists():
            return path
        if name == "fp32":
            size = "{}x{}".format(*self._options.input_size)
            pixels = [f"--{name}={text}" for name, text in self._pixels().items() if text]
            to_onnx.main([str(self._checkpoint), str(path), "--input-size", size, *pixels])
            return path
        model = onnx.load(self._model("fp32"))
        graph = import_graph(model)
        if name.startswith("int8"):
            nodes = _parts(graph)[name.removeprefix("int8-")] if name != "int8" else None
            feeds = feed_dicts.from_pictures(model, self.calibration)
            apply(graph, partial(quantize.to_int8, feeds=feeds, nodes=nodes))
        if name in ("fp16", "int8"):
            apply(graph, precision.to_fp16)
        write_beside(path, export_graph(graph).SerializeToString())
        return path

    def _pixels(self) -> dict[str, str | None]:
        return {"mean": self._options.mean, "std": self._options.std}

    def _digest(self) -> str:
        """Of all that the results depend on but the versions of the libraries."""
        names = [path.name for path in self.calibration]
        digest = hashlib.sha256(repr((names, self._options.input_size, self._pixels())).encode())
        export = networks.ROOT / "export"
        parts = ("detector.py", "graphs/torch_export.py", "plan/precision.py", "plan/quantize.py")
        sources = [*(export / part for part in parts), *sorted((export / "networks").glob("*.py"))]
        for path in (self._checkpoint, self._options.annotations, *sources):
            digest.update(path.read_bytes())
        return digest.hexdigest()


def _parts(graph: gs.Graph) -> dict[str, list[str]]:
    """Names of convolutions: the groups of `export.plan.precision`, each of the outputs, and all together."""
    groups = quantize.layer_groups(graph)
    heads = {f"outputs.{name.split('/')[0].split('.')[1]}": [name] for name in groups["outputs"]}
    return groups | heads | {"all": [name for names in groups.values() for name in names]}


def tables(results: dict[str, Any]) -> str:
    """The tables of all checkpoints: differences are to the first row, intervals hold 95 % of the draws."""
    text = (
        f"- Evaluated on the {results['pictures']} pictures of {results['annotations']}, "
        f"INT8 calibrated on {results['calibration_pictures']} training pictures\n"
    )
    for one in results["checkpoints"]:
        height, width = one["input_size"]
        text += f"\n## {one['checkpoint']}: {one['arch']}, {width}x{height}\n\n{_table(one['rows'], 'row')}"
        if one["sensitivity"]:
            text += "\nINT8 of one part of the network, the rest in FP32:\n\n"
            text += _table(one["sensitivity"], "group")
    return text


def _table(rows: list[dict[str, Any]], name: str) -> str:
    lines = []
    for row in rows:
        line = {name: row[name]} | {key: f"{row[key]:.4f}" for key in ("AP", "AP50", "AP75")}
        if "AP_interval" in row:
            line["difference"] = f"{row['AP'] - rows[0]['AP']:+.4f}"
            line["95 % of draws"] = "{:+.4f} to {:+.4f}".format(*row["AP_interval"])
        lines.append(line)
    return report.records(lines)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    add("--annotations", type=Path, required=True, metavar="FILE", help="COCO instances file")
    add("--images", type=Path, required=True, metavar="DIR", help="folder of all pictures")
    text = "COCO file that names the training pictures, in the same folder, for INT8's ranges"
    add("--calibration-annotations", type=Path, required=True, metavar="FILE", help=text)
    add("--calibration-pictures", type=int, default=100, metavar="N")
    add("--plan", nargs="*", type=Path, default=[], help="plans of the checkpoints; needs their GPU")
    add("--rows", type=report.choices(ROWS), default=ROWS, help=f"some of {','.join(ROWS)} (default: all)")
    add("--input-size", type=report.frame_size, default=contract.INPUT_SIZE, metavar="HxW")
    for name in ("--mean", "--std"):
        add(name, metavar="B,G,R", help="the checkpoints' own, as for export.to_onnx")
    add("--output-dir", type=Path, default=Path("out/accuracy"))
    return parser


if __name__ == "__main__":
    sys.exit(main())
