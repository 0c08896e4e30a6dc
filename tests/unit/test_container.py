"""What Dockerfile, compose file and scripts say of each other; tests/server runs the entry point."""

import importlib.util
import io
import os
import re
import shlex
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import pytest
import yaml

from benchmarks import networks, triton_server
from benchmarks.report import BenchmarkError

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile.triton").read_text()
COMPOSE = (ROOT / "compose.yaml").read_text()


def test_everything_that_is_copied_is_there_and_not_ignored():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    ]
    assert len(copied) > 5
    for source in copied:
        assert (ROOT / source).exists(), source
        assert any(source == path or source.startswith(path + "/") for path in allowed), source


def test_image_preloads_the_plugin_and_is_not_root():
    assert "LD_PRELOAD=/opt/centernet/libdcnv2.so" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:1000"
    assert DOCKERFILE.index("USER") < DOCKERFILE.index("ENTRYPOINT")


def test_entry_point_finds_its_modules():
    """As they lie in the image: only what the Dockerfile copies."""
    copied = re.search(r"^COPY (ci/container/entrypoint.py .*) ci/container/$", DOCKERFILE, re.MULTILINE)[1]
    code = {path.stem: path.read_text() for path in map(ROOT.joinpath, copied.split())}
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(code.values()), re.MULTILINE))
    assert imported - sys.stdlib_module_names == code.keys() - {"entrypoint", "prepare"}


def test_paths_agree():
    folder = "/opt/centernet/model_repository/centernet_network/1"
    assert f"VOLUME {folder}" in DOCKERFILE
    assert f"plan:{folder}" in COMPOSE
    for script in ("entrypoint.py", "health.py"):
        assert f"/opt/centernet/ci/container/{script}" in DOCKERFILE
        assert (ROOT / "ci/container" / script).stat().st_mode & 0o111


def test_compose_passes_on_every_setting_and_no_value():
    table = (ROOT / "docs/gpu-host.md").read_text().partition("## Settings")[2].partition("\n## ")[0]
    names = [name for cell in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in cell.split(", ")]
    passed = yaml.safe_load(COMPOSE)["services"]["centernet"]["environment"]
    assert [f"`{name}`" for name in passed] == names
    entrypoint = (ROOT / "ci/container/entrypoint.py").read_text()
    assert set(re.findall(r'setting\("(\w+)"', entrypoint)) - {"DRAINING"} <= set(passed)


def test_compose_waits_longer_than_a_drain_takes():
    defaults = re.findall(r'"(DRAIN_\w+)", "(\d+)"', (ROOT / "ci/container/entrypoint.py").read_text())
    drain_s = {name: int(value) for name, value in defaults}
    (grace_s,) = map(int, re.findall(r"stop_grace_period: (\d+)s", COMPOSE))
    exit_s = 30  # Triton's own --exit-timeout-secs
    assert drain_s["DRAIN_TIMEOUT_S"] + exit_s < grace_s
    assert drain_s["DRAIN_DELAY_S"] + drain_s["DRAIN_QUIET_S"] < drain_s["DRAIN_TIMEOUT_S"]


def test_health_check_notices_a_drain_in_time():
    interval_s, retries = map(int, re.search(r"--interval=(\d+)s .*--retries=(\d+)", DOCKERFILE).groups())
    assert interval_s * retries <= 10, "DRAIN_DELAY_S"


def test_install_says_what_is_missing(tmp_path):
    environment = {**os.environ, "TENSORRT_LIB": str(tmp_path)}
    done = subprocess.run([ROOT / "ci/container/install"], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"install: found no libnvinfer.so in {tmp_path}: not a Triton image with TensorRT\n"


def test_plugin_build_says_what_is_missing(tmp_path):
    environment = {
        **os.environ,
        "TENSORRT_ROOT": str(tmp_path),
        "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
    }
    done = subprocess.run(
        [ROOT / "ci/container/build-plugin", tmp_path], env=environment, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "NvInferVersion.h" in done.stderr or "CUDA" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def container_code(monkeypatch):
    """The modules of ci/container, which are found where the scripts lie."""
    monkeypatch.syspath_prepend(ROOT / "ci/container")
    names = ("settings", "health", "watch", "tuning", "mps", "entrypoint", "prepare")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield types.SimpleNamespace(**{name: importlib.import_module(name) for name in names})
    for name in names:
        sys.modules.pop(name, None)


def test_benchmarks_start_the_server_as_the_container_does(container_code, monkeypatch, tmp_path):
    started = []

    def start(_repository, *arguments, **_):
        started.extend(arguments)
        raise triton_server.launcher.StartError

    monkeypatch.setattr(triton_server.launcher, "start", start)
    plan = tmp_path / networks.NETWORK / "1" / "model.plan"
    plan.parent.mkdir(parents=True)
    plan.touch()
    with pytest.raises(BenchmarkError), triton_server.running(tmp_path):
        pass
    monkeypatch.setattr(sys, "argv", ["entrypoint"])
    command = container_code.entrypoint._server_command(*container_code.entrypoint._parse()[:1], tmp_path, [])
    tuning = set(container_code.tuning.TUNING)
    assert {option.partition("=")[0] for option in tuning} == {
        "--buffer-manager-thread-count",
        "--cuda-memory-pool-byte-size",
    }
    assert tuning <= set(command)
    assert tuning <= set(started)


ANSWER, DEAD, REFUSED = "answer", "dead", "refused"


@pytest.mark.parametrize(
    ("inferences", "answered_meanwhile", "gone"),
    [
        ([ANSWER, DEAD, DEAD, DEAD], 0, True),
        ([ANSWER, DEAD, ANSWER, DEAD, ANSWER, DEAD], 0, True),
        ([ANSWER, DEAD, *[ANSWER] * 8, DEAD, DEAD, *[ANSWER] * 8], 0, False),
        ([ANSWER, *[REFUSED] * 9], 1, False),  # load
        ([ANSWER, *[REFUSED] * 3], 0, True),  # a network that hangs
        ([DEAD] * 9, 0, False),  # never answered: another start would not help
    ],
)
def test_watch(container_code, monkeypatch, capsys, inferences, answered_meanwhile, gone):
    steps, count = iter(inferences), 0

    def infer(url):
        nonlocal count
        count += answered_meanwhile
        step = next(steps, None)
        if step is None:
            raise SystemExit
        if step != ANSWER:
            raise container_code.health.UnhealthyError("no", busy=step == REFUSED)

    monkeypatch.setattr(container_code.health, "infer", infer)
    monkeypatch.setattr(container_code.watch, "answered", lambda port: count)
    watch = container_code.watch.Watch(0, 0.0, "http://nowhere")
    if gone:
        watch.run()
        assert next(steps, None) is None
        assert capsys.readouterr().err.count("entrypoint: inference failed: no\n") == 3
    else:
        with pytest.raises(SystemExit):
            watch.run()
    assert watch.gone.is_set() is gone


def test_a_dead_process_is_told_from_a_slow_one(container_code):
    """By a process with a name of its own among its arguments, as Triton starts them."""
    name = f"centernet_network_0_{os.getpid()}"
    words = f"HTTP Error 500: in ensemble 'centernet', Stub process '{name}' is not healthy."
    says_dead = container_code.watch.names_a_dead_process
    command = [sys.executable, "-c", "print(flush=True); input()", name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.read(1)  # Right after its start, a process has no command line yet.
    try:
        assert not says_dead(words)
    finally:
        process.kill()
    process.stdin.close()
    process.stdout.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert says_dead(words)  # Nobody has asked for it.
    process.wait()
    assert says_dead(words)
    assert says_dead("Stub process 'my-cars.2_preprocess_0_0' is not healthy.")
    assert not says_dead("HTTP Error 500: CUDA error")


def test_a_dead_process_needs_one_failure(container_code, monkeypatch):
    said = iter(["", "Stub process 'no_such_process_0_0' is not healthy."])

    def infer(url):
        if words := next(said):
            raise container_code.health.UnhealthyError(words)

    monkeypatch.setattr(container_code.health, "infer", infer)
    watch = container_code.watch.Watch(0, 0.0, "http://nowhere")
    watch.run()
    assert watch.gone.is_set()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"WATCH_INTERVAL_S": "0"}, "found '0', expected more than 0 seconds"),
        ({"WATCH_INTERVAL_S": "nan"}, "found 'nan', expected seconds"),
        ({"DRAIN_DELAY_S": "-1"}, "found '-1', expected seconds"),
        ({"DRAIN_TIMEOUT_S": "soon"}, "found 'soon', expected seconds"),
        ({"HEALTH_URL": "localhost:8000"}, "found 'localhost:8000', expected http://HOST:PORT/PATH"),
        ({"ALLOW_CLIENT_SHM": "si"}, "found 'si', expected true or false"),
        ({"MODEL_CONTROL": "poll"}, "found 'poll', expected none or explicit"),
        ({"--plan-builder": "'x"}, "No closing quotation"),
        ({"--plan-builder": ""}, "found no words, expected a command"),
        ({"--model-repository": "/nowhere", "--model-config-name": "cpu"}, "/nowhere: No such file"),
        ({"--plan-builder": "/nowhere/builder"}, "/nowhere/builder: No such file"),
        ({"DRAINING": "/usr"}, "/usr: "),
    ],
)
def test_a_wrong_setting_is_one_line(tmp_path, setting, said):
    model = tmp_path / "model.onnx"
    model.touch()
    words = {"--model": model, "--plan": tmp_path / "model.plan", "--work-dir": tmp_path / "work"}
    words |= {name: value for name, value in setting.items() if name.startswith("-")}
    environment = {"DRAINING": str(tmp_path / "draining"), **os.environ}
    environment |= {name: value for name, value in setting.items() if not name.startswith("-")}
    command = [
        sys.executable,
        ROOT / "ci/container/entrypoint.py",
        *(w for pair in words.items() for w in pair),
    ]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    misuse = "expected" in said or "quotation" in said
    assert done.returncode == (2 if misuse else 1)
    assert "Traceback" not in done.stderr
    assert said in done.stderr.splitlines()[-1]


def test_a_proxy_is_not_asked_for_the_container_itself():
    environment = {"HEALTH_URL": "http://127.0.0.1:1", "http_proxy": "http://proxy.invalid:3128"}
    command = [sys.executable, ROOT / "ci/container/health.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


@pytest.mark.parametrize(
    "answer",
    [b"[]", b"{}", b'{"outputs": null}', b'{"outputs": [{"name": "num_detections", "data": []}]}', b"\xff"]
    + [
        b'{"outputs": [{"name": "num_detections", "data": [%s]}]}' % data for data in (b'"x"', b"null", b"-1")
    ],
)
def test_an_odd_answer_is_unhealthy(container_code, monkeypatch, answer):
    monkeypatch.setattr(container_code.health.urllib.request, "urlopen", lambda *_, **__: io.BytesIO(answer))
    with pytest.raises(container_code.health.UnhealthyError):
        container_code.health.infer("http://nowhere")


def test_what_is_no_http_is_unhealthy(container_code):
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up():
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(b"220 mail.example.org\r\n")

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises(container_code.health.UnhealthyError):
            container_code.health.infer(f"http://127.0.0.1:{listener.getsockname()[1]}")
        thread.join()


def test_client_shared_memory_is_closed_or_open(container_code, monkeypatch):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["entrypoint", *arguments])
        options, further = container_code.entrypoint._parse()
        return " ".join(container_code.entrypoint._server_command(options, Path("repository"), further))

    monkeypatch.delenv("ALLOW_CLIENT_SHM", raising=False)
    closed = command("--log-verbose=1")
    assert "allow-client-shm" not in closed
    assert closed.count("=shared-memory,model-repository,") == 2
    assert closed.endswith(" --log-verbose=1")
    for setting in ("1", "true"):
        monkeypatch.setenv("ALLOW_CLIENT_SHM", setting)
        assert "--allow-client-shm=true" in command()
        assert "shared-memory" not in command()


@pytest.mark.parametrize("model", ["centernet_preprocess", "centernet_postprocess"])
def test_python_models_are_not_ready_while_the_server_drains(monkeypatch, tmp_path, model):
    monkeypatch.setitem(
        sys.modules, "triton_python_backend_utils", types.ModuleType("triton_python_backend_utils")
    )
    path = ROOT / "model_repository" / model / "1" / "model.py"
    spec = importlib.util.spec_from_file_location(model, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    ready = module.TritonPythonModel().is_ready
    monkeypatch.delenv("DRAINING", raising=False)
    assert ready() is True
    monkeypatch.setenv("DRAINING", str(tmp_path / "draining"))
    assert ready() is True
    (tmp_path / "draining").touch()
    assert ready() is False


def test_both_servers_bound_what_malloc_keeps():
    assert "MALLOC_MMAP_THRESHOLD_=131072" in DOCKERFILE
    assert '"MALLOC_MMAP_THRESHOLD_", str(128 * 1024)' in (ROOT / "server/tritonserver.py").read_text()
