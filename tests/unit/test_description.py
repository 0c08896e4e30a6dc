"""Which version of the network the Python models describe."""

import json
import os

import pytest
from centernet_image.description import ServedNetwork

NAMES = {1: ["ant"], 2: ["硬币"], 10: ["coin"]}


def write(folder, version, *, names=None, size=(64, 96), outputs=("boxes", "scores", "classes", "peaks")):
    path = folder / "centernet_network" / str(version) / "model.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    facts = {"classes": names or NAMES[version], "input_size": size, "top_k": 100}
    facts |= {"outputs": outputs} if outputs else {}
    # As `export` writes it: a new file under the old name.
    path.with_suffix(".new").write_text(json.dumps(facts, ensure_ascii=False), encoding="utf-8")
    path.with_suffix(".new").replace(path)
    return path


class Triton:
    """The server's answer to `is_model_ready`, and how often it was asked."""

    def __init__(self, *ready):
        self.ready = set(ready)
        self.asked = []

    def __call__(self, name, version):
        assert name == "centernet_network"
        self.asked.append(int(version))
        return int(version) in self.ready


def network(folder, triton, **parameters):
    config = {"parameters": {name: {"string_value": value} for name, value in parameters.items()}}
    args = {"model_repository": str(folder / "centernet_preprocess"), "model_config": json.dumps(config)}
    return ServedNetwork(args, triton)


def names(served):
    return list(served.description().classes)


@pytest.mark.parametrize("version", [1, 2, 10])
def test_the_only_version_needs_no_question(tmp_path, version):
    write(tmp_path, version)
    triton = Triton()
    served = network(tmp_path, triton)
    assert names(served) == NAMES[version] == list(served.at_start.classes)
    assert triton.asked == []


def test_the_highest_ready_version(tmp_path):
    for version in NAMES:
        write(tmp_path, version)
    (tmp_path / "centernet_network" / "configs").mkdir()
    triton = Triton(1)
    served = network(tmp_path, triton)
    assert list(served.at_start.classes) == NAMES[10], "as a number, not as text"
    for ready in ({1}, {2}, {1, 2}, {10, 1}, {1}):
        triton.ready = ready
        assert names(served) == NAMES[max(ready)]
    triton.ready = set()  # between two loads
    assert names(served) == NAMES[1]


@pytest.mark.parametrize("then_ready", [{1, 2, 10}, {1, 2}, {1}, set()])
def test_a_version_that_goes_while_the_server_is_asked(tmp_path, then_ready):
    """Back to one before: its folder is gone, and the server has it a little longer, or has none."""
    for version in (1, 2):
        write(tmp_path, version)
    triton = Triton(1, 2, 10)
    served = network(tmp_path, triton)
    path = write(tmp_path, 10)

    def take_away(name, version):
        answer = triton(name, version)
        if path.exists():
            path.unlink()
            path.parent.rmdir()
            triton.ready = then_ready
        return answer

    served._is_ready = take_away
    assert names(served) == NAMES[1 if then_ready == {1} else 2]
    path.parent.mkdir()  # A version without a description is not passed over.
    triton.ready = {10}
    with pytest.raises(FileNotFoundError, match="make the network first"):
        served.description()


def test_versions_that_come_and_go(tmp_path):
    write(tmp_path, 1)
    triton = Triton(1)
    served = network(tmp_path, triton)
    path = write(tmp_path, 2)
    assert names(served) == NAMES[1]
    triton.ready = {2}
    assert names(served) == NAMES[2]
    path.unlink()
    assert names(served) == NAMES[2], "what is served does not lose its names"
    path.parent.rmdir()
    triton.ready = {1}
    assert names(served) == NAMES[1]


def test_a_description_is_read_again_when_it_changes(tmp_path, monkeypatch):
    write(tmp_path, 1)
    served = network(tmp_path, Triton())
    before = served.description()
    assert served.description() is before, "read once"
    write(tmp_path, 1, names=["bee", "wasp"], size=(128, 32))
    after = served.description()
    assert after.classes == ("bee", "wasp")
    assert after.input_size == (128, 32)


def test_a_version_without_description_has_none_of_anothers(tmp_path):
    write(tmp_path, 1)
    triton = Triton(1)
    served = network(tmp_path, triton)
    (tmp_path / "centernet_network" / "2").mkdir()
    assert names(served) == NAMES[1]
    triton.ready = {2}
    with pytest.raises(FileNotFoundError, match=r"no .*/2/model\.json: make the network first"):
        served.description()


@pytest.mark.parametrize("folders", [[], ["1"], ["1", "3"]])
def test_nothing_to_describe(tmp_path, folders):
    for folder in folders:
        (tmp_path / "centernet_network" / folder).mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=rf"no .*/{max(folders, default='1')}/model\.json"):
        network(tmp_path, Triton())


def test_one_file_for_all_versions(tmp_path):
    elsewhere = write(tmp_path / "other", 1)
    for version in (2, 10):
        write(tmp_path, version)
    triton = Triton(10)
    served = network(tmp_path, triton, network_description=str(elsewhere), score_threshold="0.5")
    assert names(served) == NAMES[1]
    assert triton.asked == []
    assert served.parameters["score_threshold"] == "0.5"


def test_what_is_no_description_of_a_detector(tmp_path):
    path = write(tmp_path, 1)
    served = network(tmp_path, Triton())
    path.write_text('{"classes": ["a"], "input_size": [64, 96], "top_k": null}')
    os.utime(path, ns=(1, 1))
    with pytest.raises(ValueError, match="does not describe a detector"):
        served.description()


def test_a_network_from_before_peaks_is_refused_as_it_starts_and_later(tmp_path):
    write(tmp_path, 1)
    served = network(tmp_path, Triton())
    path = write(tmp_path, 1, outputs=None)
    message = f"^{path}: found a network without the output peaks, expected one with it: export it again"
    with pytest.raises(ValueError, match=message):
        served.description()
    with pytest.raises(ValueError, match=message):
        network(tmp_path, Triton())
