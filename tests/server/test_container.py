"""The container's entry point and health check, around the real server; a stand-in builds the plan."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc as grpc
from container import ENTRYPOINT, HEALTH, Container
from mps_standin import standin
from pictures import encode, picture
from tritonclient.utils import InferenceServerException

from clients import CenterNetClient, SharedMemoryError
from server.launcher import free_ports

pytestmark = pytest.mark.server


@pytest.fixture
def container(tmp_path, small_onnx):
    started = []

    def start(*options, **settings):
        started.append(Container(tmp_path, small_onnx, *options, **settings))
        return started[-1]

    yield start
    for one in started:
        one.stop()


def test_drain_answers_every_ensemble_in_flight(container):
    one = container("--drain-delay-s=2", "--drain-quiet-s=1")
    one.wait_until_healthy()
    tensor = grpc.InferInput("image", [1, 1], "BYTES")
    tensor.set_data_from_numpy(np.array([[encode(picture(400, 500))]], object))
    answered, failed, in_flight = [], [], set()

    def client(number):
        with grpc.InferenceServerClient(f"127.0.0.1:{one.grpc}") as connection:
            # As a balancer would see by the health check; an entry point that has ended drains no more.
            while not one.draining.exists() and one.process.poll() is None:
                in_flight.add(number)
                try:
                    answered.append(connection.infer("centernet", [tensor]).as_numpy("num_detections"))
                except InferenceServerException as error:
                    failed.append(error)
                in_flight.discard(number)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    while len(answered) <= 8 or len(in_flight) <= 4:
        assert not failed
        time.sleep(0.001)
    one.process.terminate()
    for thread in threads:
        thread.join()
    # 24.10 does not ask its models whether they are ready; those of 26.04 would say no.
    with urllib.request.urlopen(f"http://127.0.0.1:{one.http}/v2/health/ready", timeout=5) as answer:
        assert answer.status == 200
    for pid in one.stubs().values():
        assert f"DRAINING={one.draining}" in Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split(
            "\0"
        )
    said = one.health()
    assert (said.returncode, said.stderr) == (1, "health: draining\n")
    assert one.stop() == 0, one.log.read_text()[-3000:]
    assert not failed
    log = one.log.read_text()
    assert log.index("draining: not ready") < log.index("drained: no request is left")


def test_drain_ends_where_clients_do_not(container):
    one = container("--drain-delay-s=0", "--drain-quiet-s=1", "--drain-timeout-s=3")
    one.wait_until_healthy()
    stop = threading.Event()

    def client():
        while not stop.is_set() and one.health():
            time.sleep(0.1)
            urllib_infer(one)

    thread = threading.Thread(target=client)
    thread.start()
    begin = time.monotonic()
    code = one.stop()
    stop.set()
    thread.join()
    assert code == 0
    assert time.monotonic() - begin > 3
    assert "still busy after 3 s: stopping" in one.log.read_text()


def urllib_infer(one):
    """Keeps the counters moving; refused connections at the end are no matter."""
    header = json.dumps(
        {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1, 1], "data": ["no picture"]}]}
    ).encode()
    with contextlib.suppress(OSError):
        urllib.request.urlopen(f"http://127.0.0.1:{one.http}/v2/models/centernet/infer", header, timeout=5)


def test_plan_is_asked_for_as_configured(container):
    one = container(
        PRECISION="int8", BATCH="1,2,32", CALIBRATION="/pictures", LD_PRELOAD="libm.so.6:libdl.so.2"
    )
    one.wait_until_healthy()
    assert one.plan.read_text().split() == [
        *(
            str(one.onnx),
            str(one.plan),
            "--if-needed",
            "--verify",
            "--precision",
            "int8",
            "--batch",
            "1,2,32",
        ),
        *("--timing-cache", str(one.plan.with_name("timing.cache")), "--calibration", "/pictures"),
    ]


def test_batch_that_no_server_would_take_is_refused_before_the_plan_is_built(container):
    one = container(BATCH="1,2,4", builder="raise SystemExit('not wanted')")
    assert one.process.wait(timeout=300) == 2
    said = "batch: found 1,2,4, expected 32 as the largest, max_batch_size of all models"
    assert one.log.read_text().splitlines()[-1] == f"entrypoint: error: {said}"


def test_control_interfaces_are_closed(container):
    one = container(ADMIN_KEY="sesame")
    one.wait_until_healthy()

    def ask(path, body=None, **headers):
        request = urllib.request.Request(f"http://127.0.0.1:{one.http}/v2/{path}", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code

    assert ask("health/ready") == 200
    for path, body in (
        ("repository/index", b"{}"),
        ("repository/models/centernet_network/unload", b"{}"),
        ("systemsharedmemory/status", None),
        ("trace/setting", None),
        ("logging", None),
    ):
        assert ask(path, body) == 403, path
    assert ask("repository/index", b"{}", **{"admin-key": "sesame"}) == 200
    # open to the operator, but models stay as they are
    assert ask("repository/models/centernet_network/unload", b"{}", **{"admin-key": "sesame"}) >= 400
    for protocol, port in (("grpc", one.grpc), ("http", one.http)):
        with (
            CenterNetClient(f"127.0.0.1:{port}", protocol=protocol, shared_memory="system") as client,
            pytest.raises(SharedMemoryError, match="start it with --allow-client-shm=true"),
        ):
            client.check_ready()
    counted = f"import watch; print(watch.answered({one.metrics}))"
    watched = subprocess.run(
        [sys.executable, "-c", counted], cwd=ENTRYPOINT.parent, capture_output=True, text=True, check=True
    )
    assert float(watched.stdout) >= 1
    with grpc.InferenceServerClient(f"127.0.0.1:{one.grpc}") as client:
        assert client.is_server_ready()
        with pytest.raises(InferenceServerException, match="This protocol is restricted"):
            client.get_model_repository_index()


def test_failed_build_ends_the_container(container):
    one = container(builder="import sys; sys.exit('no plan')")
    assert one.process.wait(timeout=300) == 1
    assert one.log.read_text() == "no plan\n"


def test_stop_while_the_plan_is_built(container):
    one = container(builder="import time; print('building', flush=True); time.sleep(600)")
    while "building" not in one.log.read_text():
        time.sleep(0.05)
    one.process.send_signal(signal.SIGTERM)
    assert one.process.wait(timeout=10) == 128 + signal.SIGTERM


def test_without_model(tmp_path, small_onnx):
    one = Container(tmp_path, small_onnx, "--model", str(tmp_path / "no.onnx"))
    assert one.process.wait(timeout=300) == 1
    assert "mount an ONNX file (export.to_onnx) there" in one.log.read_text()


def test_plan_without_its_onnx_file_is_checked(tmp_path, small_onnx):
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"of another machine")
    builder = f"{sys.executable} -m export.to_plan"
    options = ("--model", tmp_path / "no.onnx", "--plan", plan, "--plan-builder", builder)
    one = Container(tmp_path, small_onnx, *options)
    assert one.process.wait(timeout=120) == 1
    # A GPU, or the description of the plan.
    assert re.fullmatch("error: found no .*\n", one.log.read_text())


def test_server_that_dies_ends_the_container(container):
    one = container()
    one.wait_until_healthy()
    os.kill(one.server, signal.SIGKILL)
    assert one.process.wait(timeout=300) == 128 + signal.SIGKILL


@pytest.mark.parametrize("model", ["centernet_network", "centernet_preprocess"])
def test_dead_process_of_a_python_model_ends_the_container(container, model):
    """Triton starts it no more. Two of the preprocess model's three still answer."""
    # The server waits for the dead one, too, as long as it may.
    one = container("--exit-timeout-secs=3", WATCH_INTERVAL_S="0.2")
    one.wait_until_healthy()
    server = one.server
    os.kill(one.stubs()[f"{model}_0_0"], signal.SIGKILL)
    assert one.process.wait(timeout=90) == 70
    log = one.log.read_text()
    assert log.count("entrypoint: inference failed: HTTP Error 500") == 1
    assert "entrypoint: the server no longer answers: ending it; start the container again\n" in log
    assert not Path(f"/proc/{server}").exists()


def test_onnx_file_is_served_without_a_plan(tmp_path, small_onnx):
    network = tmp_path / "network"
    network.mkdir()
    for path in (small_onnx, small_onnx.with_suffix(".json")):
        (network / path.name).symlink_to(path.resolve())
    one = Container(
        tmp_path,
        network / "model.onnx",
        *("--model-config-name=cuda", "--work-dir", tmp_path / "work"),
        builder="raise SystemExit('no plan is wanted')",
        # There is no GPU here: what the configuration says of it is left out.
        prepare=lambda repository: shutil.copy(
            repository / "centernet_network/configs/cpu.pbtxt",
            repository / "centernet_network/configs/cuda.pbtxt",
        ),
    )
    shutil.rmtree(one.plan.parent)  # The volume: nothing in it is needed.
    try:
        one.wait_until_healthy()
    finally:
        code = one.stop()
    assert code == 0
    assert not one.plan.parent.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.onnx", "found no {}: mount an ONNX file (export.to_onnx) there"),
        ("network.onnx", "found {}, expected a file named model.onnx: rename it"),
    ],
)
def test_onnx_file_that_cannot_be_served(tmp_path, small_onnx, name, said):
    (tmp_path / "network.onnx").symlink_to(small_onnx)
    one = Container(tmp_path, small_onnx, "--model-config-name=cuda", "--model", tmp_path / name)
    assert one.process.wait(timeout=300) == 1
    assert one.log.read_text() == f"entrypoint: {said.format(tmp_path / name)}\n"


def test_mps_is_started_for_the_server_and_ended_after_it(tmp_path, small_onnx):
    def prepare(repository):
        mps = repository / "centernet_preprocess/configs/mps.pbtxt"
        mps.parent.mkdir()
        mps.write_text(re.sub(r"count: \d", "count: 1", (mps.parents[1] / "config.pbtxt").read_text()))
        network = repository / "centernet_network/configs"
        shutil.copy(network / "cpu.pbtxt", network / "mps.pbtxt")  # There is no GPU here.

    control = standin(tmp_path)
    path = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{control.parent}{os.pathsep}{os.environ['PATH']}"
    one = Container(tmp_path, small_onnx, prepare=prepare, MPS="true", PATH=path)
    try:
        one.wait_until_healthy()
        stubs = one.stubs()
        assert [name for name in stubs if name.startswith("centernet_preprocess")] == [
            "centernet_preprocess_0_0"
        ]
        (pipes,) = {line.split()[0] for line in control.with_name("log").read_text().splitlines()}
        for pid in stubs.values():
            environment = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8").split("\0")
            assert f"CUDA_MPS_PIPE_DIRECTORY={pipes}" in environment
        assert Path(pipes).is_dir()
    finally:
        code = one.stop()
    assert code == 0
    assert control.with_name("log").read_text().splitlines() == [f"{pipes} -d", f"{pipes} quit -t 5"]
    assert not Path(pipes).exists()


def test_client_shared_memory_is_opened_by_its_setting(container):
    """24.10 shows that it was asked for: it does not know the option."""
    one = container(ALLOW_CLIENT_SHM="true")
    assert one.process.wait(timeout=300) == 1
    assert "unrecognized option '--allow-client-shm=true'" in one.log.read_text()


def test_health_without_server(tmp_path):
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "HEALTH_URL": f"http://127.0.0.1:{port}/v2/models/centernet/infer",
        "DRAINING": str(tmp_path / "draining"),
    }
    done = subprocess.run([sys.executable, HEALTH], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("health: ")
    assert done.stderr.count("\n") == 1
