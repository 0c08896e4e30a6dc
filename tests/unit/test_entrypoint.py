"""Draining: when the container's entry point tells the server to stop. The clock is the tests' own."""

import importlib.util
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

ENTRYPOINT = Path(__file__).parents[2] / "ci" / "container" / "entrypoint.py"


class Machine:
    """A clock, and a server whose metrics are a function of it: (finished, pending), None if it is silent."""

    def __init__(self, metrics):
        self.now, self.metrics = 0.0, metrics

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds
        assert self.now < 1000, "it never stops"

    def urlopen(self, url, timeout):
        assert (url, timeout) == ("http://127.0.0.1:8002/metrics", 2)
        state = self.metrics(self.now)
        if state is None:
            raise ConnectionRefusedError
        finished, pending = state
        labels = '{model="centernet",version="1"}'
        text = (
            f"# HELP nv_inference_request_success successful ones\n"
            f"nv_inference_request_success{labels} {finished}\n"
            f"nv_inference_pending_request_count{labels} {pending}\n"
            f"nv_gpu_utilization{labels} {self.now}\n"
        )
        return io.BytesIO(text.encode())


@pytest.fixture
def drain(monkeypatch, tmp_path, capsys):
    """`drain(metrics)`: the second in which it ended, and its last words."""
    monkeypatch.syspath_prepend(ENTRYPOINT.parent)  # as Python does for a script
    spec = importlib.util.spec_from_file_location("entrypoint", ENTRYPOINT)
    entrypoint = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(entrypoint)
    options = SimpleNamespace(
        draining=tmp_path / "draining",
        metrics_port=8002,
        drain_delay_s=10,
        drain_quiet_s=2,
        drain_timeout_s=40,
    )

    def run(metrics, *, ends_s=1e9):
        machine = Machine(metrics)
        monkeypatch.setattr(entrypoint, "time", machine)
        monkeypatch.setattr("urllib.request.urlopen", machine.urlopen)
        server = SimpleNamespace(poll=lambda: None if machine.now < ends_s else 0)
        entrypoint._drain(options, server)
        assert options.draining.exists()
        return machine.now, capsys.readouterr().err.splitlines()[-1]

    return run


def test_an_idle_server_stops_when_balancers_have_noticed(drain):
    stopped_s, said = drain(lambda now: (7, 0))
    assert stopped_s == pytest.approx(10, abs=0.2)
    assert said == "entrypoint: drained: no request is left"


def test_a_busy_server_stops_when_nothing_has_finished_for_a_while(drain):
    stopped_s, _ = drain(lambda now: (min(int(now), 25), 0))
    assert stopped_s == pytest.approx(27, abs=0.3)


def test_requests_that_wait_keep_it_up(drain):
    stopped_s, _ = drain(lambda now: (7, 3 if now < 30 else 0))
    assert stopped_s == pytest.approx(32, abs=0.3)


def test_metrics_that_fail_are_no_idle_server(drain):
    stopped_s, _ = drain(lambda now: None if now < 20 else (7, 0))
    assert stopped_s == pytest.approx(22, abs=0.3)


@pytest.mark.parametrize("metrics", [lambda now: (now, 0), lambda now: (7, 1), lambda now: None])
def test_it_does_not_wait_for_ever(drain, metrics):
    stopped_s, said = drain(metrics)
    assert stopped_s == pytest.approx(40, abs=0.2)
    assert said == "entrypoint: still busy after 40 s: stopping"


def test_a_server_that_has_ended_is_not_waited_for(drain):
    stopped_s, _ = drain(lambda now: (7, 1), ends_s=5)
    assert stopped_s == pytest.approx(5, abs=0.2)


SERVER = """#!{python}
import pathlib, signal, sys, time
def stop(*_):
    print("told to stop, draining:", pathlib.Path({draining!r}).exists(), flush=True)
    sys.exit({code})
signal.signal(signal.SIGTERM, stop)
print("serving", flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("code", [0, 1])
def test_the_server_is_told_to_stop_after_the_drain(tmp_path, code):
    """Triton ends with 1 where a Python model's process does not end in time."""
    draining, model, log = tmp_path / "draining", tmp_path / "model.onnx", tmp_path / "log"
    model.touch()
    server = tmp_path / "bin" / "tritonserver"
    server.parent.mkdir()
    server.write_text(SERVER.format(python=sys.executable, draining=str(draining), code=code))
    server.chmod(0o755)
    environment = {**os.environ, "PATH": f"{server.parent}{os.pathsep}{os.environ['PATH']}"}
    command = [sys.executable, ENTRYPOINT, "--model", model, "--plan", tmp_path / "model.plan"]
    command += ["--plan-builder", "true", "--draining", draining, "--metrics-port", "9"]
    command += ["--drain-delay-s=0", "--drain-quiet-s=0.1", "--drain-timeout-s=0.2"]
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT)
    try:
        while "serving" not in log.read_text():
            assert process.poll() is None, log.read_text()
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=300) == 0
    finally:
        process.kill()
    said = log.read_text().splitlines()
    begin = said.index("told to stop, draining: True")
    assert "still busy after 0.2 s" in said[begin - 1]
    assert said[begin + 1 :] == code * ["entrypoint: told to stop, the server ended with 1"]
