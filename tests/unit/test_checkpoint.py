"""Every format of checkpoint loads whole; every wrong one says what is wrong."""

import random
import tarfile

import pytest
import reference
import safetensors.torch
import tiny
import torch

from export import checkpoint
from export.errors import ExportError, UsageError
from export.networks import ARCHITECTURES


class Foreign:
    """A Python object of the kind that loading must not bring to life."""


@pytest.fixture(scope="module")
def state():
    return tiny.network("resdcn_18").state_dict()


def assert_loaded(path, state, **expected):
    loaded = checkpoint.load(path, **expected)
    assert loaded.arch == "resdcn_18"
    assert loaded.heads == tiny.HEADS
    for name, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)
    assert not loaded.network.training
    return loaded


def test_the_originals_format(tmp_path, state):
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(3))])
    content = {"epoch": 140, "state_dict": {f"module.{name}": value for name, value in state.items()}}
    torch.save({**content, "optimizer": optimizer.state_dict()}, tmp_path / "model_last.pth")
    loaded = assert_loaded(
        tmp_path / "model_last.pth", state, arch="resdcn_18", heads={"wh": 2, "hm": 3, "reg": 2}
    )
    assert loaded.classes is None


def test_the_format_before_zip_files(tmp_path, state):
    torch.save({"state_dict": state}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert_loaded(tmp_path / "old.pth", state)


def test_a_plain_state_dict_with_class_names_nowhere(tmp_path, state):
    torch.save(state, tmp_path / "weights.pt")
    assert assert_loaded(tmp_path / "weights.pt", state).classes is None


def test_class_names_beside_the_weights(tmp_path, state):
    torch.save({"state_dict": state, "classes": ["coin", "note", "card"]}, tmp_path / "named.pth")
    assert assert_loaded(tmp_path / "named.pth", state).classes == ["coin", "note", "card"]


def test_safetensors(tmp_path, state):
    metadata = {"classes": '["coin", "note", "card"]'}
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors", metadata)
    assert assert_loaded(tmp_path / "weights.safetensors", state).classes == ["coin", "note", "card"]


def test_batch_norm_counters_may_be_absent(tmp_path, state):
    kept = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(state)
    torch.save({"state_dict": kept}, tmp_path / "old.pth")
    assert_loaded(tmp_path / "old.pth", state)


def test_half_precision_is_widened(tmp_path, state):
    half = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save(half, tmp_path / "half.pth")
    assert_loaded(tmp_path / "half.pth", {name: value.to(state[name].dtype) for name, value in half.items()})


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_architecture_is_inferred(tmp_path, arch):
    heads = {"hm": 5, "reg": 2, "wh": 10, "depth": 1}
    loaded = checkpoint.load(tiny.write(tmp_path / "x.pth", arch, heads))
    assert (loaded.arch, loaded.heads) == (arch, heads)


@pytest.mark.parametrize("arch", reference.ARCHITECTURES)
def test_the_originals_size(shared, tmp_path, arch):
    loaded = checkpoint.load(reference.write_checkpoint(shared, arch, tmp_path / "x.pth"))
    assert (loaded.arch, loaded.heads) == (arch, reference.HEADS)


def test_imagenet_classifier_of_the_originals_dla_34_is_dropped(tmp_path):
    content = tiny.network("dla_34").state_dict()
    content |= {"base.fc.weight": torch.zeros(1000, 128, 1, 1), "base.fc.bias": torch.zeros(1000)}
    torch.save({"state_dict": content}, tmp_path / "x.pth")
    assert checkpoint.load(tmp_path / "x.pth").arch == "dla_34"


def test_heads_of_one_convolution(tmp_path):
    whole = tiny.network("resdcn_18").state_dict()
    content = {name: value for name, value in whole.items() if name.split(".")[0] not in tiny.HEADS}
    for name, channels in tiny.HEADS.items():
        content |= {f"{name}.weight": torch.zeros(channels, 8, 1, 1), f"{name}.bias": torch.zeros(channels)}
    torch.save(content, tmp_path / "x.pth")
    loaded = checkpoint.load(tmp_path / "x.pth")
    assert loaded.heads == tiny.HEADS
    with torch.inference_mode():
        assert loaded.network(torch.zeros(1, 3, 32, 32))["hm"].shape == (1, 3, 8, 8)


def test_centerfaces_own_names_at_its_size(tmp_path):
    """The heat map's convolution is the first of two layers, with a sigmoid behind it."""
    heads = {"hm": 1, "wh": 2, "hm_offset": 2, "landmarks": 10}
    network = tiny.network("mobilenetv2", heads, width=1)
    content = network.state_dict()
    for part in ("weight", "bias"):
        content[f"hm.0.{part}"] = content.pop(f"hm.{part}")
    assert content["dla_up.conv_last.0.weight"].shape[0] == 24
    torch.save({"epoch": 140, "state_dict": content}, tmp_path / "model_best.pth")
    loaded = checkpoint.load(tmp_path / "model_best.pth")
    assert (loaded.arch, loaded.heads) == ("mobilenetv2", heads)
    image = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded.network(image), network(image), rtol=0, atol=0)


def test_half_a_head_is_not_taken_for_a_heat_map_with_its_sigmoid(tmp_path):
    content = tiny.network("resdcn_18").state_dict()
    del content["hm.2.weight"], content["hm.2.bias"]
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ExportError, match=r"does not have: hm\.0\.bias, hm\.0\.weight"):
        checkpoint.load(tmp_path / "x.pth")


def without(prefix):
    return lambda state: {name: value for name, value in state.items() if not name.startswith(prefix)}


def plus(name, shape=(2,)):
    return lambda state: {**state, name: torch.zeros(shape)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layer3.1.conv2"),
            "closest, resdcn_18, lacks layer3.1.conv2.weight; expected one of dla_34",
        ),
        (without("layer"), "and [0-9]+ more weights"),
        (plus("layer1.7.conv1.weight"), "weights that resdcn_18 does not have: layer1.7.conv1.weight"),
        (plus("hm.4.bias"), "does not have: hm.4.bias"),
        (without(("hm", "reg", "wh")), "found a backbone without heads"),
        (
            plus("layer1.0.bn1.weight", (9,)),
            r"layer1.0.bn1.weight has shape \[9\], expected \[8\] .* width 0.125",
        ),
        (plus("conv1.weight", (7, 3, 7, 7)), r"has shape .* \([0-9]+ more differ\)"),
        (plus("conv1.weight", ()), "conv1.weight has shape"),
        (plus("hm.2.bias", ()), r"hm.2.weight has shape \[3, .* expected \[1, "),
        (plus("hm.0.bias", ()), "lacks .*|has shape"),
        (lambda state: {"encoder.weight": torch.zeros(1)}, "found no known architecture"),
        (
            lambda state: {
                **without("wh")(state),
                "wh.weight": torch.zeros(2, 8, 1, 1),
                "wh.bias": torch.zeros(2),
            },
            "lacks wh.0.bias, wh.0.weight, wh.2.bias and 1 more weights: expected all heads",
        ),
        (lambda state: {0: torch.zeros(1)}, "found a dict of 0, expected a state_dict"),
        (lambda state: {"epoch": 3}, "found a dict of epoch, expected a state_dict"),
        (lambda state: {"state_dict": {}}, "expected a state_dict of tensors"),
        (lambda state: [1, 2], "found a list, expected a dict"),
        (lambda state: {"state_dict": state, "classes": ["a"]}, "found 1 class names, expected 3"),
        (lambda state: {"state_dict": state, "classes": 3}, "found classes 3, expected a list of names"),
        (lambda state: {"state_dict": state, "model": Foreign()}, "other objects are not loaded"),
    ],
)
def test_wrong_content(tmp_path, state, change, message):
    torch.save(change(state), tmp_path / "x.pth")
    with pytest.raises(ExportError, match=message) as error:
        checkpoint.load(tmp_path / "x.pth")
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(str(tmp_path / "x.pth"))


def test_other_architecture_or_heads_than_asked_for(tmp_path):
    path = tiny.write(tmp_path / "x.pth", "resdcn_18")
    with pytest.raises(UsageError, match="found resdcn_18, expected dla_34"):
        checkpoint.load(path, arch="dla_34")
    with pytest.raises(UsageError, match="found heads hm=3,reg=2,wh=2, expected hm=80,wh=2"):
        checkpoint.load(path, heads={"hm": 80, "wh": 2})


PAGE, POINTER = b"<!DOCTYPE html>\n<p>Sign in", b"version https://git-lfs.github.com/spec/v1"
AGAIN = ": download it again$"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pth", b"", "no PyTorch or safetensors file: found 0 bytes beginning b''" + AGAIN),
        ("x.pth", PAGE, r"safetensors file: found 26 bytes beginning b'<!DOCTYPE html>\\n'" + AGAIN),
        ("x.pth", POINTER, "safetensors file: found 42 bytes beginning b'version https://'" + AGAIN),
        ("x.pth", b"PK\x03\x04 cut short", r"not a ZIP archive: is the file complete\?$"),
        ("x.pth", tarfile.TarInfo("storages").tobuf(), "is the file complete"),
        ("x.safetensors", POINTER, "found 42 bytes beginning b'version https://'" + AGAIN),
        ("x.safetensors", b"\x09" + 7 * b"\0" + b"{", r"cannot be read as safetensors file: .* complete\?$"),
    ],
)
def test_broken_files(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ExportError, match=message) as error:
        checkpoint.load(tmp_path / name)
    assert "\n" not in str(error.value)


def test_truncated_checkpoint(tmp_path):
    path = tiny.write(tmp_path / "x.pth", "resdcn_18")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ExportError, match="is the file complete"):
        checkpoint.load(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_checkpoints(tmp_path, state, zipped):
    """Whatever PyTorch makes of the damage, it is one line."""
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "x.pth").read_bytes()
    damaged = [whole[:5000]]
    for seed in range(30):
        rng = random.Random(seed)
        content = bytearray(whole)
        for _ in range(6):
            at = rng.randrange(20000)
            content[at if rng.random() < 0.5 or not zipped else -at - 1] = rng.randrange(256)
        damaged.append(content)
    messages = []
    for content in damaged:
        (tmp_path / "x.pth").write_bytes(content)
        try:
            checkpoint.load(tmp_path / "x.pth")
        except ExportError as error:
            messages.append(str(error))
    assert len(messages) > 10
    assert not [message for message in messages if "\n" in message]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "qint8"),
        (lambda value: value.to(torch.int8), "int8"),
        (lambda value: value > 0, "bool"),
        (lambda value: value.to(torch.float8_e4m3fn), "float8_e4m3fn"),
        (lambda value: value.to(torch.complex64), "complex64"),
        (torch.Tensor.to_sparse, "sparse_coo"),
        (lambda value: value.to("meta"), "meta \\(without values\\)"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # quantized and sparse tensors are on their way out of PyTorch
def test_weights_that_are_no_plain_floats_are_refused(tmp_path, state, change, kind):
    torch.save({**state, "conv1.weight": change(state["conv1.weight"])}, tmp_path / "x.pth")
    with pytest.raises(ExportError, match=rf"conv1\.weight is {kind}, expected one of float32, "):
        checkpoint.load(tmp_path / "x.pth")


def test_batch_norm_counters_may_be_anything(tmp_path, state):
    counters = {name: torch.tensor(3.5) for name in state if name.endswith("num_batches_tracked")}
    torch.save(state | counters, tmp_path / "x.pth")
    assert_loaded(tmp_path / "x.pth", state)


def test_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no such file"):
        checkpoint.load(tmp_path / "x.pth")
