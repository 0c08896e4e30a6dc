"""`--mean` and `--std`, and where they end up."""

import numpy as np
import onnx
import onnxruntime
import pytest
import reference
import tiny
import torch
from centernet_image.contract import COCO, NORMALISATIONS, Normalisation
from centernet_image.decode import decode
from centernet_image.geometry import boxes_to_image, warp
from exported import export, kept_traces

from export import checkpoint, normalisation, to_onnx
from export.detector import Detector, Normalise
from export.errors import UsageError
from export.graphs import onnx_files
from export.plan import feed_dicts
from export.verify import against_pytorch

IMAGENET, NONE = NORMALISATIONS["imagenet"], NORMALISATIONS["none"]
OWN = Normalisation((0.1, 0.2, 0.3), (0.4, 0.5, 1.0))


@pytest.mark.parametrize(
    ("mean", "std", "expected"),
    [
        (None, None, None),
        ("coco", None, COCO),
        ("imagenet", None, IMAGENET),
        (None, "imagenet", IMAGENET),
        ("none", "none", NONE),
        ("0.1,0.2,0.3", "0.4,0.5,1", OWN),
        ("0.1, 0.2, 0.3", "0.4 0.5 1", OWN),
        ("0.1,0.2,0.3", "imagenet", Normalisation(OWN.mean, IMAGENET.std)),
        ("none", "imagenet", Normalisation(NONE.mean, IMAGENET.std)),
    ],
)
def test_names_and_numbers(mean, std, expected):
    assert normalisation.parse(mean, std) == expected


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ("0.1,0.2,0.3", None, "^--mean: found numbers without --std"),
        (None, "0.1,0.2,0.3", "^--std: found numbers without --mean"),
        ("0.1,0.2", "coco", "^--mean: found 0.1,0.2, expected three numbers .* coco, imagenet, none$"),
        ("pascal", None, "^--mean: found pascal, expected three"),
        (None, "pascal", "^--std: found pascal, expected three"),
        ("0.1,nan,0.3", "coco", "^--mean: found 0.1,nan,0.3, expected three"),
        ("103.53,116.28,123.675", "coco", "expected numbers of 0 to 1: they are for pixels / 255"),
        ("coco", "0.1,0,0.3", "^--std: .* expected numbers of above 0 and at most 1"),
        ("coco", "57.4,57.1,58.4", "^--std: .* pixels / 255"),
        ("-0.1,0.2,0.3", "coco", "0 to 1"),
    ],
)
def test_misuse(mean, std, message):
    with pytest.raises(UsageError, match=message):
        normalisation.parse(mean, std)


@pytest.mark.parametrize("pixels", [COCO, IMAGENET, NONE, OWN])
def test_the_graph_and_the_feeds_follow_the_same_formula(pixels):
    frame = np.random.default_rng(0).integers(0, 256, (32, 64, 3), np.uint8)
    expected = np.stack(
        [(frame[..., c] / 255 - pixels.mean[c]) / pixels.std[c] for c in range(3)]  # BGR, in this order
    )
    made = Normalise(pixels)(torch.from_numpy(frame[None])).numpy()[0]
    np.testing.assert_allclose(made, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(feed_dicts.normalise(frame, pixels), expected, rtol=0, atol=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The command's files: a network with numbers of its own, once as detector and once as heads."""
    folder = tmp_path_factory.mktemp("own")
    source = tiny.write(folder / "x.pth", "resdcn_18")
    options = ["--input-size", "64x96", "--mean", "0.1,0.2,0.3", "--std", "0.4,0.5,1"]
    with kept_traces():
        for form in ("detector", "heads"):
            to_onnx.main([str(source), str(folder / f"{form}.onnx"), "--form", form, *options])
    return folder


def test_it_is_kept_in_graph_and_description(exported):
    model = onnx.load(exported / "detector.onnx")
    assert onnx_files.description(model).normalisation == OWN
    heads = onnx.load(exported / "heads.onnx")
    assert onnx_files.description(heads).normalisation == OWN
    frames = against_pytorch.pictures(64, 96)
    # Raw heads of pictures that were normalised by the formula are those that the detector sees.
    output = onnx.helper.make_tensor_value_info("hm", onnx.TensorProto.FLOAT, None)
    model.graph.output.append(output)
    fed = np.stack([feed_dicts.normalise(frame, OWN) for frame in frames])
    (found,) = run(model, {"frame": frames}, ["hm"])
    (expected,) = run(heads, {"input": fed}, ["hm"])
    assert np.abs(found - expected).max() < 1e-3 * expected.std()
    wrong = np.stack([feed_dicts.normalise(frame, COCO) for frame in frames])
    assert np.abs(found - run(heads, {"input": wrong}, ["hm"])[0]).max() > 1e-2 * expected.std()


def test_calibration_takes_it_from_the_description(exported, tmp_path):
    import cv2

    frame = against_pytorch.pictures(64, 96)[0]
    cv2.imwrite(str(tmp_path / "a.png"), frame)
    (feed,) = feed_dicts.from_pictures(onnx.load(exported / "heads.onnx"), [tmp_path / "a.png"])
    np.testing.assert_allclose(feed["input"][0], feed_dicts.normalise(frame, OWN), atol=1e-6)


def test_a_file_from_before_it_was_kept(exported):
    model = onnx.load(exported / "detector.onnx")
    for entry in [entry for entry in model.metadata_props if entry.key in ("mean", "std")]:
        model.metadata_props.remove(entry)
    assert onnx_files.description(model).normalisation == COCO


def run(model, feeds, outputs):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(outputs, feeds)


def test_an_exported_pascal_network_of_the_original(shared, tmp_path):
    """Trained with ImageNet's numbers: the original's detections come out with them, and not with COCO's."""
    path = reference.write_checkpoint(shared, "ctdet_pascal_resdcn_18", tmp_path / "x.pth")
    onnx_file = export(path, "--mean", "imagenet", "--input-size", "384x384")
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    for picture in PICTURES:
        found = part_found(
            shared, "ctdet_pascal_resdcn_18", picture, lambda x: session.run(None, {"frame": x})[:3]
        )
        assert found == 1
    wrong = in_pytorch(Detector(checkpoint.load(path).network, top_k=100))
    assert part_found(shared, "ctdet_pascal_resdcn_18", PICTURES[0], wrong) < 0.5


def test_a_pascal_dla_34_of_the_original(shared, tmp_path):
    path = reference.write_checkpoint(shared, "ctdet_pascal_dla_34", tmp_path / "x.pth")
    loaded = checkpoint.load(path)
    assert loaded.heads == {"hm": 20, "reg": 2, "wh": 2}
    detector = in_pytorch(Detector(loaded.network, top_k=100, normalisation=IMAGENET))
    assert part_found(shared, "ctdet_pascal_dla_34", PICTURES[1], detector) == 1


def in_pytorch(detector):
    def run(frames):
        with torch.inference_mode():
            return [output.numpy() for output in detector.eval()(torch.from_numpy(frames))[:3]]

    return run


PICTURES = ("16004479832", "17790319373")


def part_found(shared, name, picture, network):
    """The part of the original's rows (x1, y1, x2, y2, score, class) that the network's answer has.

    Which of two scores that are nearly equal is the hundredth is not decided.
    """
    facts = reference.detections(shared, name, picture)
    expected, size = np.array(facts["detections"]), tuple(facts["input"])
    image = decode((shared / "images" / facts["image"]).read_bytes())
    boxes, scores, classes = (output[0] for output in network(warp(image, size)[None]))
    boxes = boxes_to_image(boxes[None], np.array([image.shape[:2]]), size)[0]
    alike = np.abs(expected[:, None, :4] - boxes).max(axis=2) <= 0.05
    alike &= expected[:, None, 5].astype(int) == classes
    alike &= np.abs(expected[:, None, 4] - scores) <= 5e-4
    certain = expected[:, 4] > expected[-1, 4] + 1e-4
    assert certain.sum() >= 90
    return alike.any(axis=1)[certain].mean()
