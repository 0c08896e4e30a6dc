"""The accuracy study from end to end, small: drawn coins, the demo's network, a real server."""

import json

import cv2
import numpy as np
import pytest
from servers import ROOT

from benchmarks import accuracy
from training import scenes

pytestmark = [pytest.mark.server, pytest.mark.wide]


def draw(folder, name, seeds):
    """Writes scenes and their annotations in COCO form; returns the annotation file."""
    images, annotations = [], []
    for seed in seeds:
        picture, boxes, _ = scenes.scene(np.random.default_rng(seed))
        cv2.imwrite(str(folder / f"{seed}.png"), picture)
        images.append({"id": seed, "file_name": f"{seed}.png"})
        for x1, y1, x2, y2 in boxes.tolist():
            box = [x1, y1, x2 - x1, y2 - y1]
            facts = {"image_id": seed, "category_id": 1, "iscrowd": 0, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "bbox": box, **facts})
    categories = [{"id": 1, "name": "coin"}]
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": categories})
    )
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("accuracy")


@pytest.fixture(scope="module")
def arguments(folder):
    return [
        str(ROOT / "demo/coins.pth"),
        f"--annotations={draw(folder, 'val', range(100, 106))}",
        f"--calibration-annotations={draw(folder, 'train', range(4))}",
        f"--images={folder}",
        "--input-size=384x384",
        f"--output-dir={folder / 'out'}",
    ]


@pytest.fixture(scope="module")
def report(arguments, folder):
    assert accuracy.main(arguments) == 0
    return json.loads((folder / "out/accuracy.json").read_text())


def test_rows_agree(report):
    (study,) = report["checkpoints"]
    torch, onnxruntime, server, fp16, int8 = study["rows"]
    assert torch["AP50"] > 0.4, "a network that finds nothing agrees with everything"
    assert abs(onnxruntime["AP"] - torch["AP"]) <= 0.001
    assert server["AP"] == pytest.approx(onnxruntime["AP"], abs=1e-6)
    assert abs(fp16["AP"] - torch["AP"]) <= 0.005
    # Few small pictures: a single coin is worth 0.01.
    assert abs(int8["AP"] - torch["AP"]) <= 0.05
    assert int8["AP"] != fp16["AP"]


def test_every_group_is_quantized_alone(report):
    rows = report["checkpoints"][0]["sensitivity"]
    groups = ["stem", "backbone", "offsets", "heads", "outputs", "deformable", "upsampling"]
    outputs = ["outputs.hm", "outputs.reg", "outputs.wh"]
    assert sorted(row["group"] for row in rows) == sorted(["none", *groups, *outputs, "all"])
    assert rows[-1]["layers"] == sum(row["layers"] for row in rows if row["group"] in groups)
    assert len({row["AP"] for row in rows}) > 3


def test_a_second_run_computes_nothing(report, arguments, folder, capsys, monkeypatch):
    page = (folder / "out/accuracy.md").read_text()
    assert f"| Triton server, FP32 | {report['checkpoints'][0]['rows'][2]['AP']:.4f} |" in page
    monkeypatch.setattr(accuracy.Study, "_detect", None)
    assert accuracy.main(arguments) == 0
    again = json.loads((folder / "out/accuracy.json").read_text())
    assert again["checkpoints"] == report["checkpoints"]
    assert "coins.pth: resdcn_18, 384x384" in capsys.readouterr().out
