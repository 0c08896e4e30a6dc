"""Real Triton servers for tests: each has a repository of its own."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from server import launcher
from server.launcher import family

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
# Other tests run beside this one: threads that wait by spinning would slow them down.
# And a plain locale is what containers have: there the embedded Python's own encoding is ASCII.
ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE", "LC_ALL": "C"}


@dataclass(frozen=True)
class Server(launcher.Server):
    """A running server and its model repository."""

    repository: Path

    @property
    def alive(self) -> bool:
        return self.process.poll() is None


def make_repository(folder: Path, onnx: Path) -> Path:
    """Copies the model repository with `onnx` and the description beside it as its network."""
    ignore = shutil.ignore_patterns("model.onnx*", "model.plan", "model.json", "__pycache__")
    repository = shutil.copytree(REPOSITORY, folder / "model_repository", symlinks=True, ignore=ignore)
    version = repository / "centernet_network" / "1"
    for suffix in (".onnx", ".json"):
        (version / f"model{suffix}").symlink_to(onnx.with_suffix(suffix).resolve())
    return repository


def stubs(server: int) -> dict[str, int]:
    """The process of each instance of a server's Python models."""
    found = {}
    for pid in family(server):
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
        if "stub" in words[0]:
            found[next(word for word in words if re.fullmatch(r"centernet_\w+_\d+_\d+", word))] = pid
    return found


def launch(repository: Path, log: Path) -> subprocess.Popen:
    """Starts a server without waiting for it."""
    return launcher.launch(repository, log=log, environment=ENVIRONMENT).process


def start(repository: Path, folder: Path, *arguments: str) -> Server:
    """Starts a server and waits until it is ready."""
    log = folder / "server.log"
    try:
        server = launcher.start(repository, *arguments, log=log, timeout_s=90, environment=ENVIRONMENT)
    except launcher.StartError as error:
        pytest.fail(f"{error}:\n{log.read_text()[-4000:]}")
    return Server(**vars(server), repository=repository)


def stop(process: subprocess.Popen) -> None:
    launcher.stop(process, timeout_s=40)
