"""Every task of the family: graphs equal PyTorch, whatever their heads, precision and pictures."""

import dataclasses
from functools import cache

import cv2
import family
import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
import tiny
import torch
from centernet_image.contract import COCO_CLASSES, STRIDE, TASKS
from exported import kept_traces, quickly

from export import tasks, to_onnx
from export.errors import ExportError, UsageError
from export.graphs import onnx_files
from export.plan import feed_dicts, lowering
from export.verify import against_onnx, against_pytorch, rows

TOP_K = 20


@cache
def exported(name):
    return quickly(family.checkpoint(name), input_size=family.SIZE, top_k=TOP_K)


@pytest.mark.parametrize("name", family.NETWORKS)
def test_graphs_of_narrow_networks(name):
    result, task = exported(name), family.NETWORKS[name].task
    kind = tasks.TASKS[task]
    assert [tensor.name for tensor in result.model.graph.input] == [
        "frame",
        *(tensor.name for tensor in TASKS[task].inputs),
    ]
    assert [tensor.name for tensor in result.model.graph.output] == tasks.outputs_of(task)
    description = onnx_files.description(result.model)
    assert (description.task, description.fit) == (task, TASKS[task].fit)
    assert (description.normalisation, description.color) == (kind.normalisation, kind.color)
    assert max(result.differences.values()) < 1e-2
    # Once more outside of the exporter: but for joints at a limit, the graph answers what the module does.
    feeds = family.feeds(task)
    found = onnxruntime.InferenceSession(result.model.SerializeToString()).run(None, feeds)
    module = family.detector(name, top_k=TOP_K)
    with torch.inference_mode():
        expected = module(*map(torch.from_numpy, feeds.values()))[: len(found)]
    found, expected = (
        dict(zip(tasks.outputs_of(task), outputs, strict=True))
        for outputs in (found, [output.numpy() for output in expected])
    )
    assert [output.shape for output in found.values()] == [output.shape for output in expected.values()]
    agreement, pairs = rows.match(expected, found, score=1e-4, box_px=0.05)
    assert agreement.compared >= 15
    assert agreement.unmatched == 0
    for output in (tensor.name for tensor in TASKS[task].peaks):
        part, _ = rows.beyond(output, expected, found, pairs, relative=1e-3, box_px=0.05)
        assert part <= 0.05, output


def test_channels_are_swapped_for_rgb_and_another_fit_is_kept():
    """FairMOT reads RGB: a frame with red and blue exchanged gives other answers, BGR's network the same."""
    source = family.checkpoint("embeddings")
    normal = exported("embeddings").model
    other = quickly(source, input_size=family.SIZE, top_k=TOP_K, color="bgr", fit="longest")
    swapped = other.model
    assert onnx_files.description(swapped).fit == "longest"
    frame = feed_dicts.noise({"frame": [2, *family.SIZE, 3]}, {"frame": np.dtype(np.uint8)})["frame"]
    first, second, same = (
        onnxruntime.InferenceSession(model.SerializeToString()).run(["scores"], {"frame": each})[0]
        for model, each in (
            (normal, frame),
            (swapped, frame),
            (swapped, np.ascontiguousarray(frame[..., ::-1])),
        )
    )
    assert np.abs(first - second).max() > 1e-3
    np.testing.assert_allclose(first, same, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("heads", "options", "message"),
    [
        ({"hm": 1, "reg": 2}, {}, "found heads hm=1,reg=2 of no known task.*--form heads"),
        ({"hm": 1, "wh": 2, "hps": 8, "id": 4}, {}, "of keypoints and embeddings, .*--task keypoints or emb"),
        ({"hm": 1, "wh": 2}, {"task": "keypoints"}, "--task keypoints: found heads .*, expected also hps$"),
        ({"hm": 1, "wh": 2, "hps": 7}, {}, "found heads .*, expected hps=6 for keypoints$"),
        ({"hm": 1, "wh": 2, "hps": 8, "hm_hp": 3}, {}, "expected hm_hp=4 or none for keypoints$"),
        ({"hm": 1, "wh": 3, "id": 8}, {}, "expected wh=4 or wh=2 for embeddings$"),
        ({"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 9}, {}, "expected landmarks=8 for landmarks$"),
        ({"hm": 1, "wh": 2, "reg": 2, "landmarks": 10}, {}, "expected hm_offset=2 for landmarks$"),
        (
            {"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 10},
            {"task": "detect"},
            "landmarks=10, whose wh a detector would misread: leave out --task$",
        ),
        ({"hm": 1, "dep": 1, "rot": 4, "dim": 3}, {}, "expected rot=8 for boxes3d$"),
        (
            {"hm": 1, "wh": 2, "tracking": 2},
            {},
            "but no layers that read the frame before .pre_img.: ",
        ),
    ],
)
def test_heads_that_are_of_no_task(heads, options, message):
    with pytest.raises(UsageError, match=message) as error:
        to_onnx.to_onnx(tiny.checkpoint("resdcn_18", heads), input_size=family.SIZE, **options)
    assert "\n" not in str(error.value)


def test_left_out_heads_are_said(tmp_path, capsys):
    source = family.write(tmp_path / "x.pth", "tracks")
    options = ["--task", "detect", "--input-size", "64x96", "--top-k", "20"]
    with kept_traces():
        to_onnx.main([str(source), str(tmp_path / "x.onnx"), *options])
    printed = capsys.readouterr().out
    assert "  heads that detect does not read, left out: tracking=2\n" in printed
    assert "  left out: what reads the frame before (pre_img, pre_hm)\n" in printed
    assert [tensor.name for tensor in onnx.load(tmp_path / "x.onnx").graph.input] == ["frame"]


def test_raw_heads_of_any_set(tmp_path):
    source = family.checkpoint("tracks")
    result = quickly(source, form="heads", input_size=family.SIZE)
    names = [tensor.name for tensor in result.model.graph.input]
    assert names == ["input", "previous_input", "previous_heat"]
    assert [tensor.name for tensor in result.model.graph.output] == ["hm", "reg", "wh", "tracking"]
    network = tiny.network("dla_34", {"hm": 2, "tracking": 2}, stems=("pre_hm",))
    alone = dataclasses.replace(source, network=network, heads={"hm": 2, "tracking": 2})
    result = quickly(alone, form="heads", input_size=family.SIZE)
    assert [tensor.name for tensor in result.model.graph.input] == ["input", "previous_heat"]
    assert {"input", "previous_heat"} <= {name for node in result.model.graph.node for name in node.input}
    other = tiny.checkpoint("resdcn_18", {"hps": 6, "depth": 1})
    result = quickly(other, form="heads", input_size=family.SIZE)
    assert [tensor.name for tensor in result.model.graph.output] == ["hps", "depth"]
    assert result.description.classes == ()


@pytest.mark.parametrize("output", ["keypoints", "depths", "alphas", "embeddings", "displacements"])
def test_the_exporters_check_sees_a_wrong_decode(monkeypatch, output):
    name = next(name for name, network in family.NETWORKS.items() if output in tasks.outputs_of(network.task))
    right = against_pytorch._run_onnx

    def wrong(model, batches):
        return [found | {output: found[output] * 1.01 + 0.02} for found in right(model, batches)]

    task, module = family.NETWORKS[name].task, family.detector(name, top_k=TOP_K)
    heads = module.reads()
    model = family.with_outputs(exported(name).model, heads)
    against_pytorch.compare(model, module, family.feeds(task), heads, task=task)
    monkeypatch.setattr(against_pytorch, "_run_onnx", wrong)
    with pytest.raises(ExportError, match=f"of the {output} are not what the heads say"):
        against_pytorch.compare(model, module, family.feeds(task), heads, task=task)


def run(model, feeds):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("name", family.NETWORKS)
def test_precisions_compute_the_decode_in_fp32(name, precision, tmp_path):
    model, task = exported(name).model, family.NETWORKS[name].task
    for index, frame in enumerate(against_pytorch.pictures(*family.SIZE)):
        cv2.imwrite(str(tmp_path / f"{index}.png"), frame)
    calibration = feed_dicts.from_pictures(model, sorted(tmp_path.iterdir()))
    made = lowering.make(model, precision, calibration if precision == "int8" else ())
    nodes = gs.import_onnx(made.rounded).nodes
    halves = [node for node in nodes if node.outputs[0].dtype == np.float16]
    assert len(halves) > 20
    decode = [node for node in nodes if node.name.startswith(("decode/", "normalise/"))]
    assert len(decode) > 20
    # They choose among the heads' values, and compute nothing.
    choosing = {"MaxPool", "Where", "Reshape", "Transpose", "ReduceMax", "TopK", "GatherElements"}
    assert {node.op for node in decode if node in halves} <= choosing
    peaks = [node for node in decode if node.op == "MaxPool"]
    assert len(peaks) == (2 if "hm_hp" in family.NETWORKS[name].heads else 1)
    assert all(node in halves for node in peaks)
    feeds = family.feeds(task)
    # As between a plan and FP32: by rows, each with its cell's further outputs.
    tolerance, candidates = against_onnx.TOLERANCES[precision], against_onnx.candidates_of(made.reference)
    answered = run(candidates.with_heads, feeds)
    expected, cells = candidates.split(answered, score=tolerance.score)
    found = run(made.rounded, feeds)
    differences = against_onnx.compare_outputs(expected, found, tolerance, cells=cells)
    further = [tensor.name for tensor in TASKS[task].peaks]
    assert [difference.output for difference in differences] == ["detections", *further, "peaks"]
    assert differences[-1].passed, "not the other outputs' own values, in FP32"
    same = against_onnx.compare_outputs(expected, expected, against_onnx.TOLERANCES["fp32"], cells=cells)
    assert all(difference.passed for difference in same)
    assert same[0].facts["compared"] > 10, "rows whose scores are alike count, too"
    for output in further:
        spoiled = expected | {output: expected[output] * 1.2 + 3}
        wrong = against_onnx.compare_outputs(expected, spoiled, tolerance, cells=cells)
        assert [each.output for each in wrong if not each.passed] == [output, "peaks"]
    if precision == "fp16":
        assert all(difference.passed for difference in differences), list(map(str, differences))


def test_a_neighbour_as_high_may_be_the_peak():
    """A plan whose peaks are all beside the network's is right; one with all boxes a cell aside is not."""
    candidates = against_onnx.candidates_of(lowering.make(exported("tracks").model, "fp32").reference)
    answered = run(candidates.with_heads, family.feeds("tracks"))
    outputs = [tensor.name for tensor in TASKS["tracks"].columns]
    heads = {name: answered[name] for name in answered.keys() - {*outputs, "peaks"}}
    logits = np.full_like(heads["hm"], -9)
    logits[:, :, 2::4, 2:-2:4] = np.linspace(-1, 2, logits[:, :, 2::4, 2:-2:4].size).reshape(
        logits[:, :, 2::4, 2:-2:4].shape
    )
    beside = np.roll(logits, 1, axis=3)

    def decoded(higher, lower):
        given = heads | {"hm": np.maximum(higher, lower - 1e-3)}
        return given | candidates.decode(given, np.ones_like(logits, bool))

    tolerance = against_onnx.TOLERANCES["fp16"]
    expected, cells = candidates.split(decoded(logits, beside), score=tolerance.score)
    _, actual = decoded(logits, beside), decoded(beside, logits)
    for shift, passed in ((0, True), (STRIDE, False)):
        moved = actual | {"boxes": actual["boxes"] + np.float32(shift)}
        detections, *_ = against_onnx.compare_outputs(expected, moved, tolerance, cells=cells)
        assert detections.passed == passed, str(detections)
    detections, *_ = against_onnx.compare_outputs(expected, actual, tolerance)
    assert not detections.passed, "no neighbour was taken"


def test_pictures_are_laid_as_the_task_says(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.png"), np.full((20, 60, 3), 255, np.uint8))
    (feed,) = feed_dicts.from_pictures(exported("embeddings").model, [tmp_path / "wide.png"])
    height, width = family.SIZE
    rows = feed["frame"][0, :, width // 2, 0]
    assert (rows[0], rows[height // 2], rows[-1]) == (128, 255, 128)


CENTERPOSE = {"hm": 1, "wh": 2, "hps": 16, "reg": 2, "hm_hp": 8, "hp_offset": 2, "scale": 3}


@pytest.mark.parametrize(
    ("heads", "stems", "task", "names"),
    [
        (CENTERPOSE, (), "keypoints", None),
        ({"hm": 1, "wh": 2, "hps": 34}, (), "keypoints", ("person",)),
        ({"hm": 3, "dep": 1, "rot": 8, "dim": 3}, (), "boxes3d", ("pedestrian", "car", "cyclist")),
        ({"hm": 1, "wh": 2, "reg": 2, "id": 512}, (), "embeddings", ("person",)),
        ({"hm": 80, "wh": 2, "reg": 2, "tracking": 2}, ("pre_img", "pre_hm"), "tracks", COCO_CLASSES),
        ({"hm": 2, "wh": 2, "tracking": 2}, ("pre_img",), "tracks", None),
        ({"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 10}, (), "landmarks", ("face",)),
        ({"hm": 2, "wh": 4}, (), "detect", None),
    ],
)
def test_tasks_are_known_by_their_heads(heads, stems, task, names):
    assert tasks.choose(heads, stems=stems) == task
    assert tasks.TASKS[task].labels(heads) == names
