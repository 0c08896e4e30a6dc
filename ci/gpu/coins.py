"""Counts the coins of scikit-image's photograph: LD_PRELOAD=libdcnv2.so python ci/gpu/coins.py PLAN.

This process loads no plugin itself: that TensorRT can read the plan is the preloaded library's doing. Without
LD_PRELOAD the same must fail.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
from centernet_image.geometry import boxes_to_image, warp
from polygraphy.backend.trt import EngineFromBytes, TrtRunner
from skimage.data import coins

from export import errors
from export.plan.builder import load_tensorrt

ROOT = Path(__file__).resolve().parents[2]
SCORE = 0.3
OVERLAP = 0.5
FALSE_BOXES = 1
CHILD = "WITHOUT_PLUGIN"


def main() -> int:
    """Returns 0 if all marked coins are found, and the plan cannot be read without the plugin."""
    if len(sys.argv) != 2:
        raise errors.UsageError("found no PLAN, expected: LD_PRELOAD=libdcnv2.so python ci/gpu/coins.py PLAN")
    plan = Path(sys.argv[1])
    beside = plan.with_suffix(".json")
    for file in (plan, beside):
        if not file.is_file():
            raise errors.UsageError(f"found no {file}: export.to_plan writes it")
    trt = load_tensorrt()
    if os.environ.get(CHILD):
        runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        return int(runtime.deserialize_cuda_engine(plan.read_bytes()) is not None)
    if "libdcnv2" not in os.environ.get("LD_PRELOAD", ""):
        raise errors.UsageError("found no libdcnv2.so in LD_PRELOAD, expected it there")
    facts = json.loads(beside.read_text(encoding="utf-8"))
    height, width = facts["input_size"]
    picture = cv2.cvtColor(coins(), cv2.COLOR_GRAY2BGR)
    marked = json.loads((ROOT / "tests/data/coins.json").read_text(encoding="utf-8"))["annotations"]
    truth = np.array([[x, y, x + w, y + h] for x, y, w, h in (entry["bbox"] for entry in marked)])
    size = np.array(picture.shape[:2])
    with TrtRunner(EngineFromBytes(plan.read_bytes())) as runner:
        found = {}
        for batch in (1, 3, 8, 32):
            frames = np.repeat(warp(picture, (height, width))[None], batch, axis=0)
            outputs = {name: np.array(value) for name, value in runner.infer({"frame": frames}).items()}
            kept = outputs["scores"] >= SCORE
            boxes = [
                boxes_to_image(outputs["boxes"][n], size, (height, width))[kept[n]] for n in range(batch)
            ]
            found[batch] = [_matched(one, truth) for one in boxes]
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    without = subprocess.run(
        [sys.executable, *sys.argv], env={**environment, CHILD: "1"}, capture_output=True, text=True
    )
    for batch, pairs in found.items():
        print(
            f"batch {batch}: (coins found, boxes) of each picture {sorted(set(pairs))}, marked {len(truth)}"
        )
    said = without.stdout + without.stderr
    print(f"without LD_PRELOAD: exit code {without.returncode}: {said.strip()[-300:]}")
    right = all(
        coins_found == len(truth) and boxes <= len(truth) + FALSE_BOXES
        for pairs in found.values()
        for coins_found, boxes in pairs
    )
    return int(not right or without.returncode != 0)


def _matched(boxes: np.ndarray, truth: np.ndarray) -> tuple[int, int]:
    """How many of `truth` have a box of their own, and how many boxes there are."""
    low = np.maximum(boxes[:, None, :2], truth[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], truth[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(-1)
    areas = [(corners[:, 2:] - corners[:, :2]).prod(-1) for corners in (boxes, truth)]
    overlap = common / (areas[0][:, None] + areas[1][None] - common)
    pairs = np.argwhere(overlap >= OVERLAP)
    return min(len(set(pairs[:, 0])), len(set(pairs[:, 1]))), len(boxes)


if __name__ == "__main__":
    errors.run(lambda: sys.exit(main()))
