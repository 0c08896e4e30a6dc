"""evaluate.py against a real server, on a small COCO set whose truth is what the model sees."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import exported
import pytest
import tritonclient.grpc as grpc
from pictures import encode, picture

from clients import CenterNetClient, evaluate

pytestmark = pytest.mark.server

# As in COCO, ids are neither dense nor in the order of the classes.
ANT, BEE, CICADA = exported.SMALL_CLASSES
CATEGORIES = {CICADA: 3, ANT: 17, BEE: 90}
COUNT = 60


@pytest.fixture(scope="module")
def dataset(server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dataset")
    images, annotations = [], []
    with CenterNetClient(server.grpc_url) as client:
        for number in range(COUNT):
            content = encode(picture(100 + number, 150, seed=number))
            name, image_id = f"{number:03}.png", 1000 - number
            (folder / name).write_bytes(content)
            images.append({"id": image_id, "file_name": name, "height": 100 + number, "width": 150})
            found = client.detect(content, threshold=0.0)
            # Every third of the best: the others are false alarms that cost precision.
            for label, (x1, y1, x2, y2) in list(zip(found.labels, found.xyxy.tolist(), strict=True))[:30:3]:
                box = [x1, y1, x2 - x1, y2 - y1]
                if min(box[2:]) <= 0:
                    continue
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": CATEGORIES[label],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": 0,
                    }
                )
    categories = [{"id": number, "name": name} for name, number in CATEGORIES.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, server, dataset: Path, tmp_path: Path):
    """Runs evaluate.py's `main` in this process, results in `results.json`."""

    def run(*options: object, annotations: Path = dataset / "instances.json") -> int:
        words = ["evaluate.py", "--url", server.grpc_url, "--annotations", annotations, "--images", dataset]
        words += ["--output", tmp_path / "results.json", *options]
        monkeypatch.setattr("sys.argv", list(map(str, words)))
        return evaluate.main()

    return run


def answered(server) -> int:
    """How many pictures the server has answered so far."""
    with grpc.InferenceServerClient(server.grpc_url) as client:
        statistics = client.get_inference_statistics("centernet", as_json=True)
    return int(statistics["model_stats"][0]["inference_stats"]["success"]["count"])


def row(text: str, name: str) -> list[float]:
    (line,) = (line for line in text.splitlines() if line.strip().startswith(name))
    return [float(value) for value in re.findall(r"[-+]?\d\.\d{4}", line)]


def expected_ap50(dataset: Path, results: Path) -> float:
    """AP at IoU 0.5 by its definition: at 101 recalls the best precision at or beyond each."""
    content = json.loads((dataset / "instances.json").read_text())
    rows = json.loads(results.read_text(encoding="utf-8"))
    values = []
    for category in CATEGORIES.values():
        truth = {}
        for one in content["annotations"]:
            if one["category_id"] == category:
                truth.setdefault(one["image_id"], []).append([*one["bbox"], False])
        total = sum(map(len, truth.values()))
        if not total:
            continue
        hits = []
        # Python's sort keeps the order of equal scores, as pycocotools' merge sort does, picture by picture.
        own = sorted((r for r in rows if r["category_id"] == category), key=lambda r: r["image_id"])
        for found in sorted(own, key=lambda r: -r["score"]):
            open_boxes = [box for box in truth.get(found["image_id"], []) if not box[4]]
            best = max(open_boxes, key=lambda box: iou(box, found["bbox"]), default=None)
            hits.append(best is not None and iou(best, found["bbox"]) >= 0.5)
            if hits[-1]:
                best[4] = True
        precision, recall, correct = [], [], 0
        for number, hit in enumerate(hits, 1):
            correct += hit
            precision.append(correct / number)
            recall.append(correct / total)
        values.append(
            sum(
                max((p for p, r in zip(precision, recall, strict=True) if r >= level / 100), default=0)
                for level in range(101)
            )
            / 101
        )
    return sum(values) / len(values)


def iou(one: list[float], other: list[float]) -> float:
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    common = max(width, 0) * max(height, 0)
    return common / (one[2] * one[3] + other[2] * other[3] - common)


def test_average_precision(run, capsys, dataset: Path, tmp_path: Path) -> None:
    assert run("--threshold", 0) == 0
    output = capsys.readouterr().out
    ap, ap50, *_ = row(output, "server")
    results = tmp_path / "results.json"
    assert ap50 == pytest.approx(expected_ap50(dataset, results), abs=2e-3)
    assert 0.1 < ap <= ap50 < 0.99
    rows = json.loads(results.read_text())
    assert len(rows) == 100 * COUNT
    assert all(value == round(value, 2) for one in rows for value in (*one["bbox"], one["score"]))
    assert {one["category_id"] for one in rows} == set(CATEGORIES.values())
    assert list(tmp_path.iterdir()) == [results]


def test_the_protocols_threshold_and_full_precision(run, capsys, tmp_path: Path) -> None:
    assert run("--unrounded", "--limit", 5) == 0
    assert "5 pictures" in capsys.readouterr().out
    rows = json.loads((tmp_path / "results.json").read_text())
    assert min(one["score"] for one in rows) >= 0.01
    assert any(one["score"] != round(one["score"], 2) for one in rows)


def test_an_interrupted_run_goes_on(run, capsys, server, dataset: Path, tmp_path: Path) -> None:
    assert run() == 0
    whole = capsys.readouterr().out
    command = [sys.executable, evaluate.__file__, "--url", server.grpc_url, "--images", dataset]
    command += ["--annotations", dataset / "instances.json", "--output", tmp_path / "results.json"]
    command += ["--concurrency", "1"]
    progress = tmp_path / "results.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (progress.exists() and progress.read_bytes().count(b"\n") > 10):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "evaluate.py: interrupted\n")
    done = progress.read_bytes().count(b"\n") - 1
    assert 10 <= done < COUNT

    before = answered(server)
    assert run() == 0
    # The rest, and one more: is it still the same model?
    assert answered(server) - before == COUNT - done + 1
    assert capsys.readouterr().out == whole
    assert not progress.exists()


def test_a_run_with_other_settings_or_another_model_is_refused(
    run, capsys, dataset: Path, tmp_path: Path
) -> None:
    progress = tmp_path / "results.jsonl"
    # A picture that is not there keeps a run incomplete.
    content = json.loads((dataset / "instances.json").read_text())
    content["images"] = [content["images"][0], {"id": 5, "file_name": "nowhere.png"}]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] == 1000]
    annotations = tmp_path / "less.json"
    annotations.write_text(json.dumps(content))
    assert run(annotations=annotations) == 1
    output = capsys.readouterr()
    assert output.err == "evaluate.py: nowhere.png: no such file\n"
    assert "1 pictures of 2" in output.out
    assert row(output.out, "server")[1] > 0.1

    assert run("--threshold", 0.5, annotations=annotations) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "another threshold: delete it" in line

    lines = progress.read_text().splitlines()
    key, rows = json.loads(lines[1])
    progress.write_text(
        f"{lines[0]}\n{json.dumps([key, [{**one, 'score': one['score'] / 2} for one in rows]])}\n"
    )
    assert run(annotations=annotations) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "of another model" in line


def test_annotations_as_labelling_tools_write_them(run, capsys, dataset: Path, tmp_path: Path) -> None:
    assert run("--limit", 20) == 0
    expected = capsys.readouterr().out
    content = json.loads((dataset / "instances.json").read_text(encoding="utf-8"))
    for number, one in enumerate(content["annotations"]):
        del one["iscrowd"], one["area"]
        one["id"] = number
        one["image_id"] = str(one["image_id"])
    content["annotations"].append({**content["annotations"][0], "bbox": [5, 5, 0, 7]})
    for image in content["images"]:
        image["file_name"] = f"C:\\labels\\{image['file_name']}"
    annotations = tmp_path / "instances.json"
    annotations.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8-sig")
    assert run("--limit", 20, annotations=annotations) == 0
    output = capsys.readouterr()
    assert output.out == expected
    count = len(content["annotations"])
    assert output.err == f"evaluate.py: {annotations}: annotations left out of {count}: 1 with an empty box\n"


def test_a_class_that_the_annotations_do_not_know(run, capsys, dataset: Path, tmp_path: Path) -> None:
    content = json.loads((dataset / "instances.json").read_text(encoding="utf-8"))
    content["categories"] = [
        one if one["name"] != BEE else {**one, "name": "wasp"} for one in content["categories"]
    ]
    annotations = tmp_path / "wasps.json"
    annotations.write_text(json.dumps(content), encoding="utf-8")
    assert run(annotations=annotations) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"'{BEE}'" in line
    assert f"ant, wasp, {CICADA}" in line


def test_the_server_loses_nothing_against_pytorch(
    run, capsys, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    # What the server's network was exported from.
    checkpoint = next(tmp_path_factory.getbasetemp().glob("small*/small.pth"))
    # The checkpoint has no names: they follow the categories' ids, here the order of the classes.
    options = ("--reference", checkpoint, "--unrounded")
    assert run(*options, annotations=in_order(tmp_path, run)) == 0
    output = capsys.readouterr().out
    served, computed = row(output, "server"), row(output, "PyTorch")
    assert served[0] > 0.1
    assert computed[0] == pytest.approx(served[0], abs=1e-3)
    # The other columns stand on fewer boxes: two near-equal scores in the other order move them further.
    assert computed == pytest.approx(served, abs=5e-3)
    assert row(output, "difference") == pytest.approx(
        [one - other for one, other in zip(served, computed, strict=True)], abs=1.1e-4
    )


def in_order(tmp_path: Path, run) -> Path:
    dataset = run.__kwdefaults__["annotations"]
    ids = {number: exported.SMALL_CLASSES.index(name) + 1 for name, number in CATEGORIES.items()}
    content = json.loads(dataset.read_text())
    for one in content["annotations"]:
        one["category_id"] = ids[one["category_id"]]
    content["categories"] = [{"id": ids[one["id"]], "name": one["name"]} for one in content["categories"]]
    path = tmp_path / "in_order.json"
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(
    "options",
    [
        ("--images", "nowhere"),
        ("--annotations", "nowhere.json"),
        ("--reference", "nowhere.pth"),
        ("--output", "."),
        ("--arch", "dla_34"),
        ("--limit", "0"),
    ],
    ids=lambda options: options[0],
)
def test_misuse(run, options: tuple[str, str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(*options)
    assert stop.value.code == 2


def test_a_folder_without_the_pictures_is_one_line(run, capsys, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run("--images", tmp_path / "empty", "--limit", 2) == 1
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert last == "evaluate.py: none of 2 pictures could be evaluated, see the lines above"
