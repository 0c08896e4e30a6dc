"""How the plugin meets TensorRT: preloaded, opened, by the registry; and processes that have none."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path

import pytest
from toolchain_of_plugin import FOLDERS, SONAMES, TOOLCHAIN, TensorRT, find_library, find_tensorrt

# A logger that keeps what it is told, and whether the registry knows the plugin: with TensorRT as `trt`.
PRELUDE = """
import ctypes, sys

class Logger(trt.ILogger):
    def __init__(self):
        super().__init__()

    def log(self, severity, message):
        if "DCNv2 plugin" in message:
            print(message)

def registered():
    return any(c.name == "DCNv2" and c.plugin_version == "1" for c in trt.get_plugin_registry().all_creators)
"""
LOADING = {
    # Triton's --backend-config=tensorrt,plugins=
    "opened": "ctypes.CDLL(sys.argv[1])",
    "by the registry": "assert trt.get_plugin_registry().load_library(sys.argv[1]) is not None",
    "opened twice": "ctypes.CDLL(sys.argv[1]); trt.get_plugin_registry().load_library(sys.argv[1])",
}


def run(tensorrt: TensorRT, code: str, library: Path, *, preload: bool = False) -> tuple[bool, str]:
    """Whether the plugin is registered after `code`, and the messages about it."""
    result = tensorrt.python(
        f"{PRELUDE}{code}\nprint(registered())", library, preload=library if preload else None
    )
    assert result.returncode == 0, result.stderr
    *lines, found = result.stdout.splitlines()
    lines += [line for line in result.stderr.splitlines() if "DCNv2" in line]
    return found == "True", "\n".join(lines)


@pytest.mark.parametrize("command", [["/bin/true"], ["/bin/ls", "/"], [sys.executable, "-c", "print(1)"]])
def test_preload_changes_nothing_elsewhere(library: Path, command: list[str]) -> None:
    plain = subprocess.run(command, capture_output=True)
    preloaded = subprocess.run(command, capture_output=True, env={**os.environ, "LD_PRELOAD": str(library)})
    assert (preloaded.returncode, preloaded.stdout, preloaded.stderr) == (0, plain.stdout, plain.stderr)


def test_library_needs_no_tensorrt_and_lends_no_symbols(library: Path) -> None:
    needed = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    libraries = {line.split("[")[1].rstrip("]") for line in needed.splitlines() if "(NEEDED)" in line}
    system = {"libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "librt.so.1", "ld-linux-x86-64.so.2"}
    assert libraries <= system
    symbols = subprocess.run(
        ["nm", "-D", "--defined-only", library], capture_output=True, text=True, check=True
    ).stdout
    assert {line.split()[2] for line in symbols.splitlines()} == {
        "createInferBuilder_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getCreators",
        "setLoggerFinder",
    }


@pytest.mark.parametrize("loading", LOADING)
def test_loaded_plugin_registers(tensorrt: TensorRT, loading: str) -> None:
    library = find_library(tensorrt.kind)
    found, messages = run(tensorrt, LOADING[loading], library)
    assert found
    assert messages.startswith("DCNv2 plugin ")
    assert " registered with TensorRT " in messages
    assert "FP32, FP16, BF16" in messages
    assert messages.count("\n") == 0


def test_preloaded_plugin_registers_when_tensorrt_is_used(tensorrt: TensorRT) -> None:
    library = find_library(tensorrt.kind)
    found, messages = run(tensorrt, "runtime = trt.Runtime(Logger())", library, preload=True)
    assert found
    assert messages.count("registered with TensorRT") == 1
    assert messages.count("\n") == 0


def test_preloaded_plugin_may_be_loaded_again(tensorrt: TensorRT) -> None:
    code = "runtime = trt.Runtime(Logger()); " + LOADING["by the registry"]
    found, messages = run(tensorrt, code, find_library(tensorrt.kind), preload=True)
    assert found
    assert messages.count("\n") == 0


@pytest.mark.parametrize("preload", [True, False])
@pytest.mark.parametrize(("there", "build"), list(permutations(FOLDERS, 2)))
def test_build_for_another_tensorrt_says_so(there: str, build: str, preload: bool) -> None:
    code = "runtime = trt.Runtime(Logger())" if preload else LOADING["opened"]
    found, messages = run(find_tensorrt(there), code, find_library(build), preload=preload)
    assert not found
    expected = f"is not registered: it was built for {SONAMES[build]}, found {SONAMES[there]} (TensorRT "
    assert expected in messages
    assert messages.count("\n") == 0


# What Triton does: the server opens a backend for itself alone, and that brings TensorRT.
HOST = """
#include <dlfcn.h>
#include <cstdio>
int main(int, char** arguments) {
  void* backend = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
  if (backend == nullptr) return std::puts(dlerror()), 2;
  return reinterpret_cast<int (*)()>(dlsym(backend, "start"))();
}
"""
BACKEND = """
#include <NvInferRuntime.h>
#include <cstdio>
struct Logger : nvinfer1::ILogger {
  void log(Severity, const char* message) noexcept override { std::puts(message); }
} logger;
extern "C" int start() {
  createInferRuntime_INTERNAL(&logger, VERSION);
  return getPluginRegistry()->getCreator("DCNv2", "1", "") == nullptr;
}
"""


@pytest.mark.parametrize("kind", ["trt10", "trt11"])
def test_preloaded_plugin_meets_a_backend_opened_locally(kind: str, tmp_path: Path, compiler: str) -> None:
    library, tensorrt = find_library(kind), find_tensorrt(kind)
    (tmp_path / "host.cpp").write_text(HOST)
    (tmp_path / "backend.cpp").write_text(BACKEND)
    subprocess.run([compiler, "host.cpp", "-o", "host", "-ldl"], cwd=tmp_path, check=True)
    include = [f"-isystem{TOOLCHAIN / 'headers' / kind}", f"-isystem{TOOLCHAIN / 'cuda' / 'include'}"]
    version = {"trt10": 100600, "trt11": 110201}[kind]
    link = [f"-L{TOOLCHAIN / FOLDERS[kind] / 'lib'}", f"-l:{SONAMES[kind]}"]
    options = ["-shared", "-fPIC", f"-DVERSION={version}", *include]
    command = [compiler, *options, "backend.cpp", "-o", "libbackend.so", *link]
    subprocess.run(command, cwd=tmp_path, check=True)
    command = [tmp_path / "host", tmp_path / "libbackend.so"]
    plain = subprocess.run(command, env=tensorrt.environment(), capture_output=True, text=True)
    assert plain.returncode == 1
    preloaded = subprocess.run(command, env=tensorrt.environment(library), capture_output=True, text=True)
    assert preloaded.returncode == 0, preloaded.stdout + preloaded.stderr
    assert preloaded.stdout.count("registered with TensorRT") == 1
    # TensorRT itself was asked, and answered as without the plugin.
    rest = [line for line in preloaded.stdout.splitlines() if "DCNv2 plugin" not in line]
    assert rest[0] == plain.stdout.splitlines()[0]


MODEL = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [1]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [1]})
        config.set_max_batch_size(0)
        return config

    def execute(self, requests):
        arrays = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", array)]) for array in arrays]
"""


def test_preload_changes_nothing_in_tritonserver(library: Path, tmp_path: Path) -> None:
    version = tmp_path / "models" / "same" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(MODEL)
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    options = [f"--{name}-port={port}" for name, port in zip(("http", "grpc", "metrics"), ports, strict=True)]
    command = Path(sys.prefix) / "bin" / "tritonserver"
    log = tmp_path / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [command, f"--model-repository={tmp_path / 'models'}", *options],
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LD_PRELOAD": str(library)},
        )
    try:
        url = f"http://127.0.0.1:{ports[0]}/v2"
        wait_until_ready(url, server, log)
        assert str(library) in Path(f"/proc/{server.pid}/maps").read_text(encoding="utf-8")
        body = b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [2.5]}]}'
        with urllib.request.urlopen(f"{url}/models/same/infer", data=body, timeout=20) as response:
            assert b"2.5" in response.read()
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=40) == 0
    finally:
        server.kill()
        server.wait()
    assert "DCNv2" not in log.read_text()


def wait_until_ready(url: str, server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=1):
                return
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"server not ready:\n{log.read_text(encoding='utf-8')[-3000:]}")
