"""Tables, JSON, names of drawings, COCO's forms."""

import io
import json
import os
import resource
import signal
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from centernet_image.contract import COCO_CLASSES
from rich.console import Console

from clients import coco, output
from clients.detect import coco_entries
from clients.detections import EXTRAS, Detections
from clients.errors import CenterNetError, OutputError
from clients.progress_file import ProgressFile
from clients.sources import Picture

FOUND = Detections(
    np.array([[10.126, 20, 30.5, 60], [-1, 2, 3, 4]], np.float32),
    np.array([0.98768, 0.126], np.float32),
    np.array([2, 0], np.int32),
    ("traffic [red]", "ant"),
)


def text(table: object) -> str:
    stream = io.StringIO()
    Console(file=stream, width=100).print(table)
    return stream.getvalue()


@pytest.mark.parametrize("form", ["list", "lines"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_json_forms(tmp_path: Path, form: str, count: int) -> None:
    path = tmp_path / "new" / "out.json"
    with output.json_writer(path, form) as write:
        for number in range(count):
            write([output.entry(f"{number}.png", FOUND, frame=number)])
        assert path.exists() == (form == "lines")
    content = path.read_text()
    entries = json.loads(content) if form == "list" else [json.loads(line) for line in content.splitlines()]
    assert [entry["image"] for entry in entries] == [f"{number}.png" for number in range(count)]
    for number, entry in enumerate(entries):
        assert entry["frame"] == number
        assert entry["detections"] == [
            {"label": "traffic [red]", "class_id": 2, "score": 0.9877, "xyxy": [10.13, 20.0, 30.5, 60.0]},
            {"label": "ant", "class_id": 0, "score": 0.126, "xyxy": [-1.0, 2.0, 3.0, 4.0]},
        ]
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, BrokenPipeError, CenterNetError("x")])
def test_a_results_file_outlives_an_error_elsewhere(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.json"
    path.write_text("old")

    def interrupted(entries: list[object]) -> None:
        with output.json_writer(path, "list") as write:
            write(entries)
            raise error

    # Without results an earlier file stays.
    with pytest.raises(BaseException):  # noqa: B017, PT011
        interrupted([])
    assert path.read_text() == "old"
    with pytest.raises(BaseException):  # noqa: B017, PT011
        interrupted([1, {"a": 2}])
    assert json.loads(path.read_text()) == [1, {"a": 2}]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("form", ["list", "lines"])
def test_a_disk_that_fills_up_leaves_whole_entries(tmp_path: Path, form: str) -> None:
    path = tmp_path / "out.json"

    def fill() -> None:
        with output.json_writer(path, form) as write:
            for number in range(100):
                write([{"number": number, "text": "x" * 40}])

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OutputError, match="cannot write"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    content = path.read_text()
    entries = json.loads(content) if form == "list" else list(map(json.loads, content.splitlines()))
    assert [entry["number"] for entry in entries] == list(range(len(entries)))
    assert len(entries) > 10
    assert list(tmp_path.iterdir()) == [path]


def test_json_is_utf8_and_names_come_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    found = Detections(FOUND.xyxy[:1], FOUND.scores[:1], FOUND.class_ids[:1], ("硬币 🪙",))
    path = tmp_path / "out.json"
    with output.json_writer(path, "list") as write:
        write([output.entry(name, found)])
    content = path.read_bytes()
    assert "硬币 🪙".encode() in content
    (entry,) = json.loads(content.decode("utf-8"))
    assert os.fsencode(entry["image"]) == b"caf\xe9.png"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("硬币 🪙", "硬币 🪙"),
        ("क्\u200dष", "क्\u200dष"),
        ("a\nb\r\x1b[2J", "a\\nb\\r\\x1b[2J"),
        ("caf\udce9", "caf\\udce9"),
        ("a\u2028b", "a\\u2028b"),
    ],
)
def test_names_are_one_line_for_people(name: str, shown: str) -> None:
    assert output.printable(name) == shown
    tables = output.Tables()
    tables.add(name, FOUND)
    assert shown in text(tables.table()).splitlines()[0]


def test_whatever_a_network_answers_is_in_the_json() -> None:
    rng = np.random.default_rng(0)
    shapes = {"keypoints": (4, 2), "locations": (3,), "dimensions": (3,), "rotations": (), "embeddings": (8,)}
    extras = {name: rng.random((len(FOUND), *shape)) for name, shape in shapes.items()}
    found = replace(FOUND, **extras, tracks=np.arange(len(FOUND)) - 1)
    assert set(found.extras) == set(EXTRAS) == set(output.EXTRAS_IN_JSON)
    entries = json.loads(json.dumps(output.entry("a.png", found)))["detections"]
    for name, values in extras.items():
        key, decimals = output.EXTRAS_IN_JSON[name]
        np.testing.assert_allclose([one[key] for one in entries], values, atol=0.51 * 10**-decimals)
    # An object without an identity has none in the JSON either.
    assert [one.get("track") for one in entries] == [None, *range(len(FOUND) - 1)]
    last = found[-1:]
    assert last.labels == FOUND.labels[-1:]
    np.testing.assert_array_equal(last.keypoints, extras["keypoints"][-1:])
    converted = found[::-1].to_supervision()
    np.testing.assert_array_equal(converted.tracker_id, found.tracks[::-1])
    np.testing.assert_array_equal(converted.data["embeddings"], extras["embeddings"][::-1])


def test_an_error_keeps_the_lines_before_it(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"

    def interrupted() -> None:
        with output.json_writer(path, "lines") as write:
            write([1, 2])
            raise ConnectionError

    with pytest.raises(ConnectionError):
        interrupted()
    assert path.read_text() == "1\n2\n"


def test_one_picture_is_a_table_of_its_boxes_and_several_a_row_each() -> None:
    tables = output.Tables()
    tables.add("[a].png", FOUND)
    single = text(tables.table())
    assert "[a].png" in single
    assert "traffic [red]" in single
    assert "10.1" in single
    tables.add("b.png", FOUND)
    tables.add_video("c.mp4", Counter(ant=7), frames=5)
    rows = text(tables.table())
    assert rows.count("1 traffic [red], 1 ant") == 2
    assert "in 5 frames: 7 ant" in rows
    assert "10.1" not in rows


def bar(console: Console, total: int | None) -> None:
    with output.progress(console, "[a] b", total, completed=2) as advance:
        for _ in range(3):
            advance()
        console.print("a line")


@pytest.mark.parametrize(("total", "shown"), [(7, "5/7"), (None, "5/?")])
def test_progress_is_a_bar_on_a_terminal(total: int | None, shown: str) -> None:
    stream = io.StringIO()
    bar(Console(file=stream, force_terminal=True, width=80, legacy_windows=False), total)
    printed = stream.getvalue()
    assert "[a] b" in printed
    assert shown in printed
    assert "a line" in printed
    # The bar leaves no trace behind it: its line is erased.
    assert printed.endswith("\x1b[2K")


def test_progress_is_silent_elsewhere() -> None:
    stream = io.StringIO()
    bar(Console(file=stream), 7)
    assert stream.getvalue() == "a line\n"


def test_no_two_drawings_have_one_name(tmp_path: Path) -> None:
    folder = output.OutputFolder(tmp_path / "out")
    found = [
        folder.name(Path(name), tmp_path / name) for name in ("a.jpg", "a.jpg", "a.tiff", "a.png", "x/a.png")
    ]
    assert [str(path.relative_to(folder.path)) for path in found] == [
        "a.jpg",
        "a-2.jpg",
        "a.png",
        "a-2.png",
        "x/a.png",
    ]


def test_a_drawing_never_replaces_its_picture(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"original")
    with pytest.raises(CenterNetError, match="choose another folder"):
        output.OutputFolder(tmp_path).save(np.zeros((9, 9, 3), np.uint8), Path("a.png"), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"original"


def annotations(tmp_path: Path, categories: dict[str, int]) -> coco.Annotations:
    path = tmp_path / "instances.json"
    images = [{"id": 42, "file_name": "cats/one.jpg"}, {"id": 7, "file_name": "two.jpg"}]
    listed = [{"id": number, "name": name} for name, number in categories.items()]
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": listed}))
    return coco.Annotations.read(path)


def test_coco_results_take_ids_by_name(tmp_path: Path) -> None:
    known = annotations(tmp_path, {"ant": 90, "traffic [red]": 13})
    for relative, image_id in (("cats/one.jpg", 42), ("two.jpg", 7)):
        picture = Picture("shown", tmp_path / relative, Path(relative))
        rows = coco_entries(known, picture, FOUND)
        assert [row["category_id"] for row in rows] == [13, 90]
        assert {row["image_id"] for row in rows} == {image_id}
        assert rows[0]["bbox"] == pytest.approx([10.126, 20, 20.374, 40])
    with pytest.raises(CenterNetError, match="no such picture"):
        coco_entries(known, Picture("shown", None, Path("three.jpg")), FOUND)


def test_coco_results_without_annotations_use_cocos_habits() -> None:
    rows = coco_entries(None, Picture("x", None, Path("000000000139.jpg")), FOUND)
    assert [(row["image_id"], row["category_id"]) for row in rows] == [(139, 3), (139, 1)]


def test_the_eighty_classes_have_cocos_ids(tmp_path: Path) -> None:
    # The ten ids that COCO left out.
    gaps = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    ids = [number for number in range(1, 91) if number not in gaps]
    category_id = coco.by_name(annotations(tmp_path, dict(zip(COCO_CLASSES, ids, strict=True))))
    assert category_id("person", 0) == 1
    assert category_id("stop sign", 11) == 13
    assert category_id("toothbrush", 79) == 90


def test_an_unknown_class_is_named(tmp_path: Path) -> None:
    category_id = coco.by_name(annotations(tmp_path, {"cat": 1, "dog": 2}))
    with pytest.raises(CenterNetError, match=r"class 5 'tac'.*cat, dog"):
        category_id("tac", 5)


def test_rounding_is_the_originals() -> None:
    row = {"image_id": 1, "category_id": 1, "bbox": [1.005, 2.675, 3.14159, 1e-9], "score": 0.98765}
    expected = [float(f"{value:.2f}") for value in row["bbox"]]  # type: ignore[union-attr]
    assert coco.rounded(row) == {**row, "bbox": expected, "score": 0.99}


@pytest.mark.parametrize("content", ["{}", "[]", "no json", '{"images": [{}], "categories": []}'])
def test_files_that_are_no_annotations(tmp_path: Path, content: str) -> None:
    path = tmp_path / "instances.json"
    path.write_text(content)
    with pytest.raises(CenterNetError, match="no COCO annotation file"):
        coco.Annotations.read(path)


def test_average_precision_of_a_perfect_and_of_an_empty_result(tmp_path: Path) -> None:
    path = tmp_path / "instances.json"
    boxes = [[10, 10, 20, 20], [50, 10, 100, 100]]
    truth = [
        {"id": i + 1, "image_id": 1, "category_id": 4, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, box in enumerate(boxes)
    ]
    content = {"images": [{"id": 1}], "annotations": truth, "categories": [{"id": 4, "name": "x"}]}
    path.write_text(json.dumps(content))
    rows = [{"image_id": 1, "category_id": 4, "bbox": box, "score": 0.5} for box in boxes]
    assert coco.average_precision(path, rows, [1]) == pytest.approx(
        {"AP": 1, "AP50": 1, "AP75": 1, "APS": 1, "APM": -1, "APL": 1}
    )
    assert coco.average_precision(path, rows[:1], [1])["AP"] == pytest.approx(0.505, abs=0.01)
    assert coco.average_precision(path, [], [1])["AP"] == 0


def test_a_progress_file_is_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with ProgressFile(path, {"model": "a"}) as run:
        run.add(5, [{"x": 1}])
        run.add(6, [])
    # Killed while it wrote.
    path.write_text(path.read_text() + '[7, [{"x"')
    with ProgressFile(path, {"model": "a"}) as run:
        assert run.done == {5: [{"x": 1}], 6: []}
        run.add(7, [{"x": 2}])
    with ProgressFile(path, {"model": "a"}) as run:
        assert sorted(run.done) == [5, 6, 7]
        run.remove()
    assert not path.exists()


def test_a_progress_file_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with ProgressFile(path, {"model": "a", "threshold": 0.1}) as run:
        run.add(5, [])
    with pytest.raises(CenterNetError, match="another threshold: delete"):
        ProgressFile(path, {"model": "a", "threshold": 0.2})
    path.write_text("[1, 2]\n")
    with pytest.raises(CenterNetError, match="another model: delete"):
        ProgressFile(path, {"model": "a"})
    path.write_text("something else\n")
    with pytest.raises(CenterNetError, match="line 1 is not of an evaluation"):
        ProgressFile(path, {"model": "a"})
