"""New versions of the network in a server that keeps answering."""

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from container import Container
from exported import SMALL_CLASSES
from pictures import encode, picture
from servers import ROOT

from clients import AsyncCenterNetClient, CenterNetClient, RetryPolicy
from clients.errors import CenterNetError
from clients.roll_out import RollOut, RollOutError

pytestmark = pytest.mark.server
KEY = "admin-key=sesame"
MORE = [*SMALL_CLASSES, "spider"]


@pytest.fixture(scope="module")
def server(tmp_path_factory, small_onnx):
    addresses = [f"--{name}-address=127.0.0.1" for name in ("http", "grpc", "metrics")]
    one = Container(
        tmp_path_factory.mktemp("explicit"),
        small_onnx,
        *(*addresses, "--drain-delay-s=0", "--drain-quiet-s=0.5"),
        ADMIN_KEY="sesame",
        MODEL_CONTROL="explicit",
    )
    try:
        one.wait_until_healthy()
        yield one
    finally:
        one.stop()


@pytest.fixture
def load(server):
    """Requests one after the other and without retries, over both ensembles; none of them may fail."""
    stop, answered, failed = threading.Event(), [], []
    content, pixels = encode(picture(60, 80, seed=1), "JPEG"), picture(50, 70)

    def ask(what):
        with CenterNetClient(
            f"127.0.0.1:{server.grpc}", retry=RetryPolicy(retries=0, timeout_s=60)
        ) as client:
            while not stop.wait(0.01):  # Tests beside this one want the processor, too.
                try:
                    found = client.detect(what)
                    assert set(found.labels) <= set(MORE)
                    answered.append(len(found))
                except (CenterNetError, AssertionError) as error:
                    failed.append(error)
                    return

    threads = [threading.Thread(target=ask, args=(what,)) for what in (content, pixels)]
    for thread in threads:
        thread.start()
    yield answered
    before = len(answered)
    while len(answered) < before + 20 and not failed:
        stop.wait(0.05)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failed


@pytest.fixture
def model(small_onnx, tmp_path):
    """`model(edit, **facts)`: the small network, changed, with other facts in its description."""

    def make(edit=lambda proto: None, **facts) -> Path:
        proto = onnx.load(small_onnx)
        edit(proto)
        path = tmp_path / "new.onnx"
        onnx.save(proto, path)
        described = json.loads(small_onnx.with_suffix(".json").read_text(encoding="utf-8")) | facts
        path.with_suffix(".json").write_text(json.dumps(described), encoding="utf-8")
        return path

    return make


def roll_out(server, path, *arguments) -> tuple[int, str]:
    command = [sys.executable, "clients/roll_out.py", path, "--model-repository", server.repository]
    command += ["--url", f"127.0.0.1:{server.grpc}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stderr


def versions(server) -> list[str]:
    """What the repository holds; of the candidate there is nothing left."""
    assert not (server.repository / "centernet_network_candidate").exists()
    network = server.repository / "centernet_network"
    return sorted(path.name for path in network.iterdir() if path.name not in ("config.pbtxt", "configs"))


def served(server) -> list[str]:
    with CenterNetClient(f"127.0.0.1:{server.grpc}") as client:
        return client.metadata("centernet_network")["versions"]


def beyond_its_names(proto: onnx.ModelProto) -> None:
    """Classes from 70 on."""
    add(proto, "peaks", np.float32([0, 0, 0, 0, 0, 70]))


def no_numbers(proto: onnx.ModelProto) -> None:
    add(proto, "peaks", np.float32([np.nan, 0, 0, 0, 0, 0]))


def finds_nothing(proto: onnx.ModelProto) -> None:
    add(proto, "peaks", np.float32([1, 1, 1, 1, 0, 1]), "Mul")


def add(proto: onnx.ModelProto, output: str, value: np.ndarray, operator: str = "Add") -> None:
    for node in proto.graph.node:
        node.output[:] = [f"{name}_before" if name == output else name for name in node.output]
        node.input[:] = [f"{name}_before" if name == output else name for name in node.input]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(value, f"{output}_change"))
    proto.graph.node.append(
        onnx.helper.make_node(operator, [f"{output}_before", f"{output}_change"], [output])
    )


def cut(proto: onnx.ModelProto) -> None:
    """No graph that can be loaded."""
    del proto.graph.node[5]


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (beyond_its_names, "its description names 3 classes"),
        (no_numbers, "found boxes that are no numbers"),
        (finds_nothing, "it finds nothing in "),
        (cut, "the server is as it was: "),
    ],
)
def test_bad_network_meets_no_request(server, load, model, tmp_path, edit, said):
    before = versions(server)
    (tmp_path / "picture.png").write_bytes(encode(picture(60, 80, seed=1)))
    path = model(edit)
    code, errors = roll_out(server, path, "--header", KEY, "--picture", tmp_path / "picture.png")
    assert (code, said in errors) == (1, True), errors
    assert errors.count("\n") == 2
    assert versions(server) == before
    assert served(server) == before


def test_good_network(server, load, model, tmp_path):
    (before,), folders = served(server), versions(server)
    (tmp_path / "picture.png").write_bytes(encode(picture(60, 80, seed=1)))
    path = model(classes=MORE)
    code, errors = roll_out(server, path, "--header", KEY, "--picture", tmp_path / "picture.png")
    assert code == 0, errors
    new = str(int(before) + 1)
    assert errors.endswith(f"roll_out.py: version {new} is served\n")
    assert served(server) == [new]
    assert versions(server) == [*folders, new]


async def find_a_fault():
    """What the network alone did not show."""
    raise CenterNetError("it is wrong")


async def be_stopped():
    """As `docker stop` and a closed terminal do."""
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("event", "error", "told"),
    [
        (find_a_fault, RollOutError, r"^went back to version \d+: it is wrong$"),
        (be_stopped, SystemExit, "143"),
    ],
)
def test_goes_back(server, load, model, event, error, told):
    before = served(server)
    folders = versions(server)
    said = []

    class Doubtful(RollOut):
        async def _check_served(self, version, description):
            await super()._check_served(version, description)
            await event()

    async def run():
        arguments = argparse.Namespace(network=model(classes=MORE), picture=None, plan_builder="false")
        headers = {"triton-grpc-protocol-admin-key": "sesame"}
        async with AsyncCenterNetClient(f"127.0.0.1:{server.grpc}", headers=headers) as client:
            await Doubtful(client, server.repository, arguments).run(said.append)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(error, match=told):
            asyncio.run(run())
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert (said[-1] == f"went back to version {before[0]}") == (error is SystemExit)
    assert served(server) == before
    assert versions(server) == folders


def test_two_at_once(server, model):
    """The second leaves alone what the first has made."""
    before = versions(server)
    other = server.repository / "centernet_network" / f".{int(served(server)[0]) + 1}.new"
    (other / "model.onnx").mkdir(parents=True)
    try:
        code, errors = roll_out(server, model(classes=MORE), "--header", KEY)
        assert (code, errors.count("\n")) == (2, 1)
        assert f"found {other}: another roll-out is under way" in errors
        assert (other / "model.onnx").is_dir()
    finally:
        shutil.rmtree(other)
    assert versions(server) == before


def test_misuse_touches_nothing(server, model, tmp_path):
    before = versions(server)
    for facts, said in (
        (
            {"input_size": [512, 512]},
            "found a frame of 512x512, the server has 256x384: start servers with it",
        ),
        ({"classes": ["bee", *SMALL_CLASSES]}, "its classes do not begin with the "),
        ({"classes": None}, "does not describe a detector"),
    ):
        code, errors = roll_out(server, model(**facts), "--header", KEY)
        assert (code, said in errors, errors.count("\n")) == (2, True, 1), errors
    code, errors = roll_out(server, model(classes=MORE), "--header", "admin-key=wrong")
    assert code == 1
    assert "restricted" in errors
    code, errors = roll_out(server, model(classes=MORE), "--header", KEY, "--model-repository", tmp_path)
    assert (code, "found no centernet_network/config.pbtxt" in errors) == (2, True)
    assert versions(server) == before
