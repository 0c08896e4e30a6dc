"""--shapes, and the network's own inputs from files."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from onnx import TensorProto, helper
from pictures import encode, picture

from export.errors import UsageError
from export.plan import array_files, calibration, command_line, picture_options, profiles


def model_of(**inputs):
    tensors = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in inputs.items()]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    first = next(iter(inputs))
    graph = helper.make_graph([helper.make_node("Identity", [first], ["y"])], "g", tensors, [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def profiles_of(model, *texts, batch=None):
    return profiles.profiles(model, batch, profiles.parse(list(texts)))


def test_any_dimension_of_any_rank_of_several_inputs():
    model = model_of(x=["n", 3, "h", "w"], points=["n", "count"], clip=[1, 2, 3, 64, 64], scale=[])
    found = profiles_of(model, "x=1x3x64x32,2x3x64x64,4x3x96x64", "points=1x5,2x5,4x50")
    assert found == {
        "x": {"min": [1, 3, 64, 32], "opt": [2, 3, 64, 64], "max": [4, 3, 96, 64]},
        "points": {"min": [1, 5], "opt": [2, 5], "max": [4, 50]},
        "clip": {kind: [1, 2, 3, 64, 64] for kind in profiles.KINDS},
        "scale": {kind: [] for kind in profiles.KINDS},
    }
    assert profiles_of(model_of(x=["n", 3, "h", "w"]), "x=1x3x8x8")["x"]["max"] == [1, 3, 8, 8]
    assert profiles_of(model_of(x=["n", 3]), batch=(1, 2, 3))["x"]["max"] == [3, 3]
    assert profiles_of(model_of(x=[2, 3]))["x"]["max"] == [2, 3]
    assert profiles_of(model_of(x=["n", 3]))["x"]["opt"] == [8, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "--shapes: found x, expected INPUT=MIN,OPT,MAX"),
        ("x=1x3x8x8,1x3x9x9", "expected INPUT=MIN,OPT,MAX"),
        ("x=1x3x8x8,,1x3x9x9", "expected INPUT=MIN,OPT,MAX"),
        ("x=axbxcxd", "expected INPUT=MIN,OPT,MAX"),
        ("x=1x3x2147483648x64", "found x=1x3x2147483648x64, expected sizes of at most 2147483647"),
        (f"x=1x3x{'9' * 20}x64", "expected sizes of at most 2147483647"),
        (f"x=1x3x{'9' * 5000}x64", "expected INPUT=MIN,OPT,MAX"),
        ("z=1x3x8x8", r"found no input z in the model, expected one of x \['n', 3, 'h', '32\*w'\]"),
        ("x=1x3x64", r"found 3 dimensions, expected 4: the input has shape \['n', 3, 'h', '32\*w'\]"),
        ("x=1x4x64x64", r"dimension 1 \(counted from 0\) is 4, 4, 4, expected 3: it is fixed"),
        ("x=1x3x64x64,1x3x32x64,1x3x64x64", "dimension 2 .* is 64, 32, 64, expected rising sizes"),
        ("x=0x3x64x64", "is 0, 0, 0, expected rising sizes of at least 1"),
        ("x=1x3x64x60", r"dimension 3 .* expected multiples of 32: the model calls it 32\*w"),
    ],
)
def test_shapes_that_do_not_fit(text, message):
    with pytest.raises(UsageError, match=message):
        profiles_of(model_of(x=["n", 3, "h", "32*w"]), text)


def test_twice_and_unlike():
    with pytest.raises(UsageError, match="found input x twice"):
        profiles.parse(["x=1x2", "x=1x2"])
    with pytest.raises(
        UsageError, match=r"input b: found 1, 8, 32 for its dimension n, expected 2, 2, 2 as for a"
    ):
        profiles_of(model_of(a=["n", 3], b=["n", 4]), "a=2x3")


def test_open_sides_say_what_to_do():
    with pytest.raises(
        UsageError, match=r"say its sizes by --shapes, in the form x=1x3x64x64,4x3x512x512,8x3x1024x1024,"
    ):
        profiles_of(model_of(x=["n", 3, "h", "w"]))


def write(folder, **files):
    for name, value in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(exist_ok=True, parents=True)
        np.savez(path, **value) if isinstance(value, dict) else np.save(path, value)
    return folder


def feeds(model, folder):
    paths = array_files.find_arrays(folder, limit=10)
    return list(array_files.from_arrays(model, paths))


def test_arrays_of_any_inputs(tmp_path):
    model = model_of(x=["n", 3], y=["n", 2, "w"])
    one, two = (
        {"x": np.ones((2, 3)), "y": np.ones((2, 2, 4))},
        {"x": np.ones(3, "f4"), "y": np.ones((1, 2, 5), "f4")},
    )
    found = feeds(model, write(tmp_path / "z", a_npz=one, b_npz=two))
    assert [{name: array.shape for name, array in feed.items()} for feed in found] == [
        {"x": (2, 3), "y": (2, 2, 4)},
        {"x": (1, 3), "y": (1, 2, 5)},
    ]
    assert found[0]["x"].dtype == np.float32
    found = feeds(model, write(tmp_path / "s", x__0_npy=one["x"], y__0_npy=one["y"]))
    assert found[0]["y"].shape == (2, 2, 4)
    assert feeds(model_of(x=["n", 3]), write(tmp_path / "f", a_npy=np.ones((4, 3))))[0]["x"].shape == (4, 3)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a_npz": {"z": np.ones(3)}}, r"a\.npz: found the arrays z, expected the model's inputs: x .*, y "),
        (
            {"a_npz": {"x": np.ones((1, 4)), "y": np.ones((1, 2))}},
            r"float64 \[1, 4\] for input x, expected float32",
        ),
        ({"a_npz": {"x": np.ones((1, 3), int), "y": np.ones((1, 2))}}, r"found int64 \[1, 3\] for input x"),
        ({"x__0_npy": np.ones((1, 3))}, r"found arrays of that name in x, expected a folder for each"),
        ({"a_npz": {"x": np.array([{}]), "y": np.ones(2)}}, r"a\.npz: cannot be read: "),
        (
            {"a_npz": {"x": np.ones((0, 3)), "y": np.ones(2)}},
            r"a\.npz: found no values \(\[0, 3\]\) for input x",
        ),
        (
            {"a_npz": {"x": np.array([1, np.nan, 2]), "y": np.ones(2)}},
            r"a\.npz: found values that are not fin",
        ),
        (
            {"a_npz": {"x": np.array([1, 2, 1e300]), "y": np.ones(2)}},
            r"a\.npz: found values that are not finite",
        ),
    ],
)
def test_arrays_that_do_not_fit(files, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        feeds(model_of(x=["n", 3], y=["n", 2]), write(tmp_path, **files))


def damaged():
    content = io.BytesIO()
    np.savez_compressed(content, x=np.arange(900.0))
    return content.getvalue()[:120] + b"?" + content.getvalue()[121:]


def of_a_pebibyte():
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (2**48,)}
    np.lib.format.write_array_header_1_0(content, header)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "content"), [("a.npz", b"PK nothing"), ("a.npz", damaged()), ("a.npy", of_a_pebibyte())]
)
def test_a_file_that_is_none(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"{name}: cannot be read: ") as raised:
        feeds(model_of(x=["n", 3]), tmp_path)
    assert "\n" not in str(raised.value)


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "a.npz").mkdir()
    np.save(tmp_path / "b.npy", np.ones((1, 3)))
    assert len(feeds(model_of(x=["n", 3]), tmp_path)) == 1


def test_an_input_of_unknown_dimensions():
    model = model_of(x=["n", 3])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(UsageError, match="x has no shape, and none follows: write it into the ONNX file"):
        profiles_of(model)


def test_batches_of_the_rows_that_there_are():
    model = model_of(x=["n", 2])
    shapes = profiles_of(model, batch=(1, 3, 5))
    found = list(
        array_files.for_profiles(
            [{"x": np.float32([[1, 1], [2, 2]])}, {"x": np.float32([[3, 3]])}], shapes, model
        )
    )
    assert [feed["x"][:, 0].tolist() for feed in found] == [[1], [1, 2, 3], [1, 2, 3, 1, 2]]
    narrow = profiles_of(model_of(x=["n", "w"]), "x=1x4,1x4,1x8")
    with pytest.raises(UsageError, match=r"found a feed of shape \[1, 2\], expected \[1, 4\] to \[1, 8\]"):
        list(array_files.for_profiles([{"x": np.ones((1, 2), "f4")}], narrow, model))


def options(*arguments):
    return command_line.parse(["m.onnx", "o.plan", "--calibration", "d", *arguments])


def test_pictures_are_what_the_options_say(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(picture(40, 60)))
    chosen = options("--mean", "0.5,0.4,0.3", "--std", "0.2,0.2,0.1", "--color", "bgr", "--fit", "letterbox")
    chosen.calibration = tmp_path
    model = model_of(input=["n", 3, "h", "w"])
    shapes = profiles_of(model, "input=1x3x32x32,1x3x64x32,1x3x64x64")
    source = calibration.find(model, chosen, shapes, SimpleNamespace(print=None))
    (feed,) = source.feeds(model)
    frame = calibration.feed_dicts.warp(
        calibration.feed_dicts.decode((tmp_path / "a.png").read_bytes()), (64, 32)
    )
    expected = (frame.astype(np.float64) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.2, 0.1]
    np.testing.assert_allclose(feed["input"][0], expected.transpose(2, 0, 1), atol=1e-5)
    chosen.color = "rgb"
    other = calibration.find(model, chosen, shapes, SimpleNamespace(print=None))
    assert other.digest() != source.digest()


@pytest.mark.parametrize(
    ("sides", "arguments", "message"),
    [
        ([1, 3, 8, 8], [], r"--mean: found none, expected 3 numbers for pixels / 255, imagenet or none"),
        ([1, 3, 8, 8], ["--mean", "1,1,1"], r"--std: found none"),
        ([1, 3, 8, 8], ["--mean", "9,9,9", "--std", "none"], r"--mean: found 9,9,9, expected numbers of 0"),
        ([1, 3, 8, 8], ["--mean", "0.5", "--std", "imagenet"], r"--mean: found 0\.5, expected 3 numbers"),
        ([1, 4, 8, 8], ["--mean", "none"], r"shape \[1, 4, 8, 8\], expected 1 or 3 channels"),
        ([1, 3, 8, 8], ["--mean", "none", "--color", "gray"], "found 3 channels, expected 1 for --color"),
        ([1, 3, 8], ["--mean", "none"], r"x is FP32 \[1, 3, 8\], expected FP32, FP16 or"),
        ([1, 3, "h", "32*w"], ["--mean", "none"], r"has open sides \['h', '32\*w'\]: say the size"),
        ([1, 3, "h", "32*w"], ["--mean", "none", "--size", "8x8"], "found 8x8, expected what"),
        ([1, 3, 8, 8], ["--mean", "none", "--size", "8"], r"--size: found 8, expected height and width"),
    ],
)  # fmt: skip
def test_pictures_that_cannot_be_fed(sides, arguments, message):
    with pytest.raises(UsageError, match=message):
        picture_options.picture_tensor(options(*arguments), "x", sides, "FP32")


def test_imagenet_goes_with_the_colours():
    made = [
        picture_options.picture_tensor(
            options("--mean", "imagenet", "--color", color), "x", [1, 3, 8, 8], "FP32"
        )
        for color in ("rgb", "bgr")
    ]
    assert made[0].mean == made[1].mean[::-1] == (0.485, 0.456, 0.406)
    image = picture(20, 30)
    np.testing.assert_allclose(made[0].prepare(image), made[1].prepare(image)[::-1], atol=1e-6)


def test_raw_pixels():
    made = picture_options.picture_tensor(options("--fit", "stretch"), "x", [1, 8, 6, 3], "UINT8")
    assert made.shape == (8, 6, 3)
    flat = np.zeros((20, 30, 3), np.uint8)
    flat[..., 2] = 200
    assert made.prepare(flat)[0, 0].tolist() == [200, 0, 0]
