"""The CPU's server: its command line in odd folders, and waiting for it."""

import http.server
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from server import launcher, tritonserver


@pytest.mark.parametrize("name", ["my clone", "größe", "it's $(here); &"])
def test_no_path_is_more_than_a_word_of_ascii(tmp_path, monkeypatch, name):
    prefix = tmp_path / name
    backends = prefix / "triton/pytriton/tritonserver/backends"
    for folder in (backends / "python", backends.with_name("bin"), prefix / "models"):
        folder.mkdir(parents=True)
    (backends.with_name("bin") / "tritonserver").touch()
    (prefix / "models" / "mine").touch()
    ran = []
    monkeypatch.setattr(sys, "prefix", str(prefix))
    monkeypatch.setattr(sys, "argv", ["tritonserver", f"--model-repository={prefix}/models", "--log-info=0"])
    monkeypatch.setattr(os, "execve", lambda *arguments: ran.append(arguments))
    tritonserver.main()
    ((_, (_, *arguments), environment),) = ran
    options = dict(argument.removeprefix("--").split("=") for argument in arguments)
    paths = [options["backend-directory"], options["model-repository"], environment["PATH"].split(":")[0]]
    assert [shlex.quote(path) for path in paths] == paths
    assert [Path(path).resolve() for path in paths] == [backends, prefix / "models", prefix / "bin"]
    assert subprocess.run(["ls", paths[1]], close_fds=False, capture_output=True).stdout == b"mine\n"


def test_a_usual_path_stays_as_it_is():
    assert tritonserver._plain("/usr/bin") == "/usr/bin"
    assert tritonserver._plain("s3://bucket/my models") == "s3://bucket/my models"


class Ready(http.server.BaseHTTPRequestHandler):
    """Answers as a server that is ready."""

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Is silent."""


def test_a_proxy_is_not_asked_for_a_server_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{launcher.free_ports(1)[0]}")
    with http.server.HTTPServer((launcher.HOST, 0), Ready) as answering:
        threading.Thread(target=answering.serve_forever, daemon=True).start()
        process = subprocess.Popen(["sleep", "600"])
        try:
            server = launcher.Server(f"{launcher.HOST}:{answering.server_port}", "", "", process, tmp_path)
            assert launcher.wait_until_ready(server, timeout_s=20)
        finally:
            launcher.stop(process, timeout_s=10)
            answering.shutdown()


def test_the_models_reason_is_in_the_error(tmp_path, monkeypatch):
    script = tmp_path / "tritonserver"
    script.write_text("""#!/bin/bash
echo 'E1128 model_lifecycle.cc:642] "failed to load '"'a'"' version 1: Internal: no memory\\n\\nAt:\\n  x"'
exit 3
""")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    log = tmp_path / "log"
    with pytest.raises(launcher.StartError) as raised:
        launcher.start(tmp_path, log=log, ports=[1, 2, 3])
    assert str(raised.value) == f"the server ended with 3: 'a' version 1: Internal: no memory; see {log}"


STUBBORN = """
import signal, subprocess, sys, threading, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def fork():
    model = [sys.executable, "-c", "import time; time.sleep(1000)", sys.argv[1]]
    print(subprocess.Popen(model).pid, flush=True)
    time.sleep(1000)
threading.Thread(target=fork).start()
"""


def test_a_server_that_does_not_end_leaves_no_model_behind():
    """Triton starts the processes of its Python models in other threads than its first."""
    shared = Path(tempfile.mkstemp(prefix="test_shm_region_", dir="/dev/shm")[1])
    command = [sys.executable, "-c", STUBBORN, shared.name]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    model = Path(f"/proc/{server.stdout.readline().strip()}")
    assert model.exists()
    launcher.stop(server, timeout_s=0.1)
    assert server.returncode == -signal.SIGKILL
    assert not shared.exists()
    for _ in range(600):
        try:
            if (model / "stat").read_text().split()[2] == "Z":  # whoever adopted it is slow
                return
        except OSError:
            return
        time.sleep(0.1)
    pytest.fail("it lives on")


def test_a_process_that_ends_meanwhile_has_no_arguments():
    with subprocess.Popen(["true"]) as ended:
        pass
    assert launcher._arguments(ended.pid) == []
