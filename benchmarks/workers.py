"""A process for each contender: one that crashes, hangs or spoils the GPU spoils nothing else."""

import importlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from export.errors import ExportError
from export.plan.builder import loaded_library


class SkippedError(ExportError):
    """The contender cannot run here; its text says why."""


class Worker:
    """A process that prints a JSON line for each thing done; ended with the `with` block.

    Args:
        command: What Python is to run.
        timeout_s: It is ended when it has been silent for so long.
        environment: By default this process's.
    """

    def __init__(
        self, command: Sequence[str], *, timeout_s: float, environment: Mapping[str, str] | None = None
    ) -> None:
        self._command = [sys.executable, *command]
        self._timeout_s, self._environment = timeout_s, environment

    def __enter__(self) -> "Worker":
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._last_words = ""
        self._readers = [threading.Thread(target=read, daemon=True) for read in (self._read, self._listen)]
        for reader in self._readers:
            reader.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def events(self) -> Iterator[dict[str, Any]]:
        """What it says, until it ends; a last `failed` with its reason if it ends badly."""
        while True:
            try:
                line = self._lines.get(timeout=self._timeout_s)
            except queue.Empty:
                yield {"event": "failed", "reason": f"hung: silent for {self._timeout_s:g} s"}
                return
            if line is None:
                break
            said = json.loads(line)
            ended = said["event"] == "failed"
            yield said
            if ended:
                return
        code = self._process.wait()
        self._readers[1].join(timeout=5)
        if code:
            yield {"event": "failed", "reason": f"ended with {code}: {self._last_words or 'no message'}"}

    def answer(self, line: str) -> None:
        """Send it a line; nobody reads it if the process has ended."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries write to standard output too.
            if line.startswith('{"event"'):
                self._lines.put(line)
        self._lines.put(None)

    def _listen(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._last_words = line.strip() or self._last_words


@contextmanager
def working(module: str, arguments: dict[str, Any], *, timeout_s: float) -> Iterator[Worker]:
    """A process in which `work` of a module of this package gets the arguments: `arguments["contender"]`'s.

    NVIDIA's plugin finds this process's cuBLAS there under the only name that it looks for, CUDA 12's.
    """
    with tempfile.TemporaryDirectory() as name:
        environment = dict(os.environ)
        if arguments["contender"] == "nvidia" and (library := loaded_library("libcublas.so")):
            Path(name, "libcublas.so.12").symlink_to(library)
            paths = [name, *filter(None, [environment.get("LD_LIBRARY_PATH")])]
            environment["LD_LIBRARY_PATH"] = os.pathsep.join(paths)
        command = ["-m", "benchmarks.workers", module, json.dumps(arguments)]
        with Worker(command, timeout_s=timeout_s, environment=environment) as worker:
            yield worker


def say(event: str, **facts: Any) -> None:
    """In a worker: one thing done."""
    print(json.dumps({"event": event} | facts), flush=True)


def main() -> int:
    """In a worker: calls the module's `work`; returns the exit code."""
    module, arguments = sys.argv[1:]
    try:
        importlib.import_module(f"benchmarks.{module}").work(SimpleNamespace(**json.loads(arguments)))
    except (ImportError, ExportError) as error:
        say("skipped", reason=(str(error) or type(error).__name__).splitlines()[0])
    except Exception as error:
        # A CUDA error stays with its process: what is left to do needs another one.
        say("failed", reason=f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}")
        return 1
    else:
        say("done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
