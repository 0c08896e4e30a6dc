"""Narrow networks of the tasks, whose weights are formulas, and what to expect of them in plain loops."""

from pathlib import Path

import exported
import family
import golden
import numpy as np
import onnxruntime
import torch

from export import to_repository
from export.networks import CenterNet, create

SIZE = (96, 160)
TOP_K = 40
NETWORKS = {
    "keypoints": "keypoints",
    "boxes3d": "boxes3d bare",
    "embeddings": "embeddings",
    "tracks": "tracks",
    "landmarks": "landmarks",
}
"""Of each task one of `family.NETWORKS`: boxes in space without those in the picture."""

BIASES = {"wh.2.bias": 6.0, "dim.2.bias": 1.6, "dep.2.bias": -3.0}
"""Boxes have areas, and objects stand before the camera."""


def write_checkpoint(name: str, path: Path) -> Path:
    made = family.NETWORKS[NETWORKS[name]]
    width = golden.ARCHITECTURES[made.arch]
    network = golden.with_formulas(create(made.arch, made.heads, width=width, stems=made.stems))
    state = network.state_dict()
    for bias in BIASES.keys() & state.keys():
        state[bias] += BIASES[bias]
    torch.save({"state_dict": state}, path)
    return path


def export(name: str, folder: Path) -> Path:
    """The ONNX file, with its description beside it."""
    checkpoint = write_checkpoint(name, folder / f"{name}.pth")
    return exported.export(checkpoint, "--input-size", "{}x{}".format(*SIZE), "--top-k", str(TOP_K))


def helmets() -> CenterNet:
    """CaoWGG's detector of persons and helmets, narrower; both are found, and few scores are near 1."""
    heads = {"hm": 2, "reg": 2, "wh": 2}
    made = golden.with_formulas(create("mobilenetv2", heads, width=golden.ARCHITECTURES["mobilenetv2"]))
    made.state_dict()["hm.bias"] -= torch.tensor([0.0, 5.0])
    return made


def export_helmets(folder: Path) -> Path:
    """As `export`, with what its trainer normalised by and its names."""
    checkpoint, labels = folder / "helmet.pth", folder / "helmet.txt"
    torch.save({"state_dict": helmets().state_dict()}, checkpoint)
    labels.write_text("person\nhelmet\n", encoding="utf-8")
    options = ["--input-size", "{}x{}".format(*SIZE), "--top-k", str(TOP_K), "--labels", str(labels)]
    return exported.export(checkpoint, *options, "--mean", "imagenet", "--std", "imagenet")


def write_repository(name: str, onnx: Path, folder: Path) -> Path:
    """What `export.to_repository` makes of it."""
    to_repository.main([str(onnx), str(folder), "--name", name])
    return folder


def run(onnx: Path, frame: np.ndarray, **previous: np.ndarray) -> dict[str, np.ndarray]:
    """The peaks of one frame, [K, ...] each."""
    session = onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])
    feed = {name: array[None] for name, array in {"frame": frame, **previous}.items()}
    names = [output.name for output in session.get_outputs()]
    return {name: array[0] for name, array in zip(names, session.run(None, feed), strict=True)}


def naive_heat(boxes, frame_size):
    height, width = frame_size
    found = np.zeros(frame_size)
    for box in boxes:
        x1, x2 = (min(max(x, 0), width - 1) for x in box[::2])
        y1, y2 = (min(max(y, 0), height - 1) for y in box[1::2])
        if x2 - x1 <= 0 or y2 - y1 <= 0:
            continue
        h, w, o = np.ceil(y2 - y1), np.ceil(x2 - x1), 0.7
        roots = (
            (h + w + np.sqrt((h + w) ** 2 - 4 * h * w * (1 - o) / (1 + o))) / 2,
            (2 * (h + w) + np.sqrt(4 * (h + w) ** 2 - 16 * (1 - o) * h * w)) / 2,
            (-2 * o * (h + w) + np.sqrt(4 * o * o * (h + w) ** 2 - 16 * o * (o - 1) * h * w)) / 2,
        )
        r = int(np.floor(min(roots)))
        column, row = int((x1 + x2) / 2), int((y1 + y2) / 2)
        for y in range(max(row - r, 0), min(row + r, height - 1) + 1):
            for x in range(max(column - r, 0), min(column + r, width - 1) + 1):
                value = np.exp(-((x - column) ** 2 + (y - row) ** 2) / (2 * ((2 * r + 1) / 6) ** 2))
                found[y, x] = max(found[y, x], value)
    return found


def naive_ids(now: dict[str, np.ndarray], before: dict[str, np.ndarray], count: int) -> list[int]:
    """The identities of a frame's `boxes`, `classes`, `centers` and `displacements`, all in one scale.

    Args:
        now: Of this frame, best first.
        before: Of the one before, with its `ids`.
        count: Identities that were given so far.
    """

    def area(box: np.ndarray) -> float:
        return (box[2] - box[0]) * (box[3] - box[1])

    ids: list[int] = []
    for index in range(len(now["boxes"])):
        place = now["centers"][index] + now["displacements"][index]
        nearest, least = 0, np.inf
        for other in range(len(before["ids"])):
            distance = float(((place - before["centers"][other]) ** 2).sum())
            limit = min(area(now["boxes"][index]), area(before["boxes"][other]))
            if (
                now["classes"][index] == before["classes"][other]
                and before["ids"][other] not in ids
                and distance <= limit
                and distance < least
            ):
                nearest, least = before["ids"][other], distance
        if not nearest:
            count += 1
            nearest = count
        ids.append(nearest)
    return ids
