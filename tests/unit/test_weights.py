"""Weights are found in whatever today's trainers write around them."""

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import tiny
import torch
from torch.optim.swa_utils import AveragedModel

from export import checkpoint, to_onnx
from export.errors import ExportError


@pytest.fixture(scope="module")
def state():
    return tiny.network("resdcn_18").state_dict()


@pytest.fixture(scope="module")
def other():
    """The weights of the same network at another step."""
    return tiny.network("resdcn_18", seed=1).state_dict()


def load(folder, content):
    torch.save(content, folder / "x.pth")
    return checkpoint.load(folder / "x.pth")


def assert_taken(loaded, state):
    assert loaded.arch == "resdcn_18"
    assert loaded.heads == tiny.HEADS
    for name, value in loaded.network.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "_orig_mod.", "model.", "net.", "network.", "ema.", "ema_model.", "detector."),
        "module._orig_mod.",
        "_orig_mod.module.",
        "model._orig_mod.module.net.",
        "net.model.module.model._orig_mod.",
        "ema.module.",
        "_fsdp_wrapped_module._orig_mod.model.",
    ],
)
def test_prefixes(tmp_path, state, prefix):
    assert_taken(load(tmp_path, {"state_dict": prefixed(prefix, state)}), state)


def test_a_prefix_of_dla_34(tmp_path):
    """It has a `base.` of its own."""
    state = tiny.network("dla_34").state_dict()
    loaded = load(tmp_path, {"state_dict": prefixed("model.module.", state)})
    assert loaded.arch == "dla_34"
    assert all(torch.equal(value, state[name]) for name, value in loaded.network.state_dict().items())


def test_wrappers_in_the_middle_of_names(tmp_path, state):
    """Parts of a network may be compiled or distributed alone."""
    names = {
        name: name.replace("layer1.", "layer1._orig_mod.").replace("hm.", "hm.module.") for name in state
    }
    assert_taken(load(tmp_path, {names[name]: value for name, value in state.items()}), state)


@pytest.mark.parametrize(
    "keys",
    [
        *(
            ("model",),
            ("model_state_dict",),
            ("net",),
            ("ema",),
            ("state_dict_ema",),
            ("network",),
            ("weights",),
        ),
        ("model", "state_dict"),
        ("checkpoint", "model", "module"),
        ("ema", "module"),
    ],
)
def test_containers(tmp_path, state, keys):
    content = prefixed("module.", state)
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "lr": 1e-4}
    assert_taken(load(tmp_path, content), state)


@pytest.mark.parametrize(
    ("plain", "average"),
    [
        ("model", "ema"),
        ("state_dict", "state_dict_ema"),
        ("net", "model_ema"),
        ("module", "ema_state_dict"),
        ("model", "swa"),
    ],
)
@pytest.mark.parametrize("first", ["plain", "average"])
def test_the_average_is_taken(tmp_path, state, other, plain, average, first):
    content = {plain: other, average: prefixed("module.", state)}
    loaded = load(tmp_path, content if first == "plain" else dict(reversed(content.items())))
    assert_taken(loaded, state)
    assert loaded.source == average
    assert loaded.left_out == [plain]


def test_the_average_in_one_dict_with_the_other_weights(tmp_path, state, other):
    content = prefixed("model.", other) | prefixed("ema_model.module.", state) | prefixed("teacher.", other)
    loaded = load(tmp_path, {"state_dict": content})
    assert_taken(loaded, state)
    assert loaded.source == "state_dict, prefix ema_model."
    assert loaded.left_out == ["model", "teacher"]


def test_an_average_without_statistics_is_not_enough(tmp_path, state, other):
    """Some average the parameters alone."""
    parameters = {name: value for name, value in other.items() if "running" not in name}
    loaded = load(tmp_path, {"model": state, "ema": parameters})
    assert_taken(loaded, state)
    assert (loaded.source, loaded.left_out) == ("model", ["ema"])


@pytest.mark.parametrize("head", ["wh", "reg"])
@pytest.mark.parametrize("first", ["plain", "average"])
def test_an_average_without_a_head_is_not_enough(tmp_path, state, other, head, first):
    """Without `reg`, which networks may lack, it would be another detector."""
    average = {name: value for name, value in other.items() if not name.startswith(f"{head}.")}
    content = {"model": state | {"loss.weight": torch.ones(3)}, "ema": average}
    loaded = load(tmp_path, content if first == "plain" else dict(reversed(content.items())))
    assert_taken(loaded, state)
    assert loaded.source == "model"


def test_an_average_need_not_have_what_only_training_needs(tmp_path, state, other):
    assert_taken(load(tmp_path, {"model": other | {"loss.weight": torch.ones(3)}, "ema": state}), state)


@pytest.mark.parametrize("first", ["plain", "average"])
def test_mmengine_saves_the_average_in_the_networks_place(tmp_path, state, other, first):
    counted = prefixed("module.", other) | {"steps": torch.tensor(7)}
    content = {"state_dict": state, "ema_state_dict": counted}
    loaded = load(tmp_path, content if first == "plain" else dict(reversed(content.items())))
    assert_taken(loaded, state)
    # Alone, or of a trainer with other names, it is the average.
    loaded = load(tmp_path, {"model": state, "ema_state_dict": counted})
    assert_taken(loaded, other)
    assert set(loaded.left_out) == {"model", "steps"}


def test_another_network_in_the_same_dict(tmp_path, state, other):
    loaded = load(tmp_path, state | prefixed("target_net.", other))
    assert_taken(loaded, state)
    assert loaded.left_out == ["target_net"]


def test_a_teacher_is_not_the_network(tmp_path, state, other):
    loaded = load(tmp_path, {"ema_teacher": other, "student": state})
    assert_taken(loaded, state)
    assert (loaded.source, loaded.left_out) == ("student", ["ema_teacher"])


def test_averaged_model(tmp_path, state, other):
    network = tiny.network("resdcn_18")
    averaged = AveragedModel(network)
    averaged.update_parameters(network)
    assert "n_averaged" in averaged.state_dict()
    loaded = load(tmp_path, averaged.state_dict())
    assert_taken(loaded, state)
    assert loaded.left_out == ["n_averaged"]
    # Beside the weights of the last step, under a name that says nothing.
    loaded = load(tmp_path, {"a": other, "b": averaged.state_dict()})
    assert_taken(loaded, state)
    assert loaded.source == "b"


def test_lightning(tmp_path, state):
    optimizer = torch.optim.AdamW([weight := torch.nn.Parameter(torch.zeros(3))])
    weight.sum().backward()
    optimizer.step()
    content = {
        "epoch": 9,
        "global_step": 100,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": OrderedDict(prefixed("net.", state) | {"loss.positive_weight": torch.ones(3)}),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 10}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.3), "dirpath": "/x"}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 1e-4, "classes": ["a", "b", "c"]},
    }
    loaded = load(tmp_path, content)
    assert_taken(loaded, state)
    assert loaded.source == "state_dict, prefix net."
    assert "loss" in loaded.left_out


def test_what_only_training_needs_is_named_and_left_out(tmp_path, state):
    optimizer = torch.optim.Adam([weight := torch.nn.Parameter(torch.zeros(3))])
    weight.sum().backward()
    optimizer.step()
    further = {
        "loss.weight": torch.ones(3),
        "criterion.focal.alpha": torch.ones(1),
        "teacher.conv1.weight": torch.ones(1),
        "num_updates": torch.tensor(7),
    }
    content = {"model": state | further, "optimizer": optimizer.state_dict(), "classes": ["a", "b", "c"]}
    loaded = load(tmp_path, content)
    assert_taken(loaded, state)
    assert loaded.classes == ["a", "b", "c"]
    assert set(loaded.left_out) == {"optimizer", "loss", "criterion", "teacher", "num_updates"}


def test_a_part_of_the_network_is_not_left_out(tmp_path, state):
    """Weights that outputs may depend on are no matter of training."""
    with pytest.raises(ExportError, match=r"resdcn_18 does not have: neck\.weight"):
        load(tmp_path, {"model": state | {"neck.weight": torch.ones(3)}})


def test_an_optimizer_is_no_network(tmp_path, state, other):
    loaded = load(tmp_path, {"optimizer": {"ema": other}, "model": state})
    assert_taken(loaded, state)
    with pytest.raises(ExportError, match="found a dict of optimizer, expected a state_dict"):
        load(tmp_path, {"optimizer": state})


def test_options_paths_and_scores_beside_the_weights(tmp_path, state):
    beside = {
        "args": argparse.Namespace(lr=0.1, data=Path("/data")),
        "best": np.float64(0.4),
        "counts": {"seen": np.int64(3), "ok": np.bool_(True)},
    }
    assert_taken(load(tmp_path, {"model": state, **beside}), state)


def test_classes_nearest_to_the_weights(tmp_path, state):
    inner = {"state_dict": state, "classes": ["a", "b", "c"]}
    assert load(tmp_path, {"model": inner, "classes": ["x", "y", "z"]}).classes == ["a", "b", "c"]


def test_safetensors_with_a_prefix(tmp_path, state):
    safetensors.torch.save_file(prefixed("module.model.", state), tmp_path / "x.safetensors")
    assert_taken(checkpoint.load(tmp_path / "x.safetensors"), state)


@pytest.mark.parametrize("name", ["x.SAFETENSORS", "x.pth"])
def test_safetensors_under_another_name(tmp_path, state, name):
    safetensors.torch.save_file(state, tmp_path / name, {"classes": '["a", "b", "c"]'})
    loaded = checkpoint.load(tmp_path / name)
    assert_taken(loaded, state)
    assert loaded.classes == ["a", "b", "c"]


def test_a_pytorch_file_under_the_name_of_safetensors(tmp_path, state):
    torch.save(state, tmp_path / "x.safetensors")
    assert_taken(checkpoint.load(tmp_path / "x.safetensors"), state)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("model-00002-of-00003.safetensors", "one of 3 parts"),
        ("pytorch_model-00001-of-00012.bin", "one of 12 parts"),
        ("model.safetensors.index.json", "the index of the parts"),
    ],
)
def test_a_part_of_a_checkpoint_is_named(tmp_path, name, found):
    (tmp_path / name).write_text('{"weight_map": {}}')
    with pytest.raises(ExportError, match=f"{found} of a checkpoint, expected the whole: merge them"):
        checkpoint.load(tmp_path / name)


def test_the_only_part_is_the_whole(tmp_path, state):
    safetensors.torch.save_file(state, tmp_path / "model-00001-of-00001.safetensors")
    assert_taken(checkpoint.load(tmp_path / "model-00001-of-00001.safetensors"), state)


def test_torchscript_and_exported_programs_are_named(tmp_path):
    model = torch.nn.Conv2d(3, 2, 1)
    torch.jit.script(model).save(tmp_path / "script.pth")
    program = torch.export.export(model, (torch.zeros(1, 3, 4, 4),))
    torch.export.save(program, tmp_path / "program.pt2")
    for name, kind in (("script.pth", "TorchScript archive"), ("program.pt2", r"exported program .*\.pt2")):
        with pytest.raises(
            ExportError, match=rf"{name}: an? {kind}.*: save the weights of the model"
        ) as error:
            checkpoint.load(tmp_path / name)
        assert "\n" not in str(error.value)


class Foreign:
    """A Python object of the kind that loading must not bring to life."""


def test_what_is_refused_is_named(tmp_path, state):
    with pytest.raises(ExportError, match=r"it holds a \S+Foreign\), and other objects are not loaded"):
        load(tmp_path, {"state_dict": state, "hyper_parameters": Foreign()})
    with pytest.raises(ExportError, match="found a folder, expected a file"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("layer2.0.conv1.weight", float("nan"), r"not finite \(1 of \d+, the first nan at \[1, 0, 0, 0\]\)"),
        ("hm.2.bias", float("inf"), r"not finite \(1 of 3, the first inf at \[1\]\)"),
        ("bn1.running_mean", -float("inf"), r"the first -inf at \[1\]"),
        ("layer1.0.bn1.running_var", -0.5, r"negative variances \(1 of 8, the first -0.5 at \[1\]\)"),
        ("layer1.0.bn1.running_var", float("nan"), "not finite"),
        ("conv1.weight", 1e300, "the first inf at"),  # too large for float32
    ],
)
def test_values_that_are_no_numbers_are_named(tmp_path, name, value, message):
    state = tiny.network("resdcn_18").state_dict()
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    state[name][(1, *(0,) * (state[name].ndim - 1))] = value
    with pytest.raises(ExportError, match=rf"x\.pth: {name} has .*{message}.*take an earlier") as error:
        load(tmp_path, state)
    assert "\n" not in str(error.value)


def test_the_number_of_wrong_weights(tmp_path):
    state = {
        name: value * float("nan") if value.is_floating_point() else value
        for name, value in tiny.network("resdcn_18").state_dict().items()
    }
    with pytest.raises(ExportError, match=r"; [0-9]{2,} more weights have such values"):
        load(tmp_path, state)


def test_a_nan_ends_the_command_with_one_line(tmp_path):
    """Without the refusal it was a segmentation fault."""
    state = tiny.network("resdcn_18").state_dict()
    state["deconv_layers.0.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        ExportError, match=r"deconv_layers\.0\.weight has values that are not finite"
    ) as error:
        to_onnx.main([str(tmp_path / "x.pth"), str(tmp_path / "x.onnx")])
    assert (error.value.exit_code, str(error.value).count("\n")) == (1, 0)
    assert not (tmp_path / "x.onnx").exists()
