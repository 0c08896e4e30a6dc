"""The environment's `tritonserver` command: the real server that `ci/setup` fetched, set up for a CPU."""

import os
import shlex
import sys
import sysconfig
import tempfile
from pathlib import Path

BACKENDS = Path(__file__).resolve().parents[1] / "backends"


def main() -> None:
    """Replaces this process by the server; the command line's arguments go to it.

    `--backend-directory` and `--model-config-name=cpu` are added unless the command line has its own.
    """
    root = Path(sys.prefix) / "triton"
    package = root / "pytriton" / "tritonserver"
    server = package / "bin" / "tritonserver"
    if not server.is_file():
        sys.exit(f"tritonserver: no server at {server}: run ci/setup")
    arguments = [_plain_repository(argument) for argument in sys.argv[1:]]
    defaults = {"--backend-directory": _plain(_backend_directory(package)), "--model-config-name": "cpu"}
    given = {argument.split("=", 1)[0] for argument in arguments}
    added = [f"{option}={value}" for option, value in defaults.items() if option not in given]
    environment = dict(os.environ)
    # glibc's own first threshold, which it raises by what is freed unless it is set. Then frames and pictures
    # share heaps, which holes keep from shrinking: under load the server would grow on and on.
    environment.setdefault("MALLOC_MMAP_THRESHOLD_", str(128 * 1024))
    _prepend(environment, "LD_LIBRARY_PATH", root / "nvidia_pytriton.libs", root)
    # The Python backend runs the first python3 that it finds.
    _prepend(environment, "PATH", Path(_plain(sys.prefix)) / "bin")
    os.execve(server, [str(server), *added, *arguments], environment)  # noqa: S606


def _backend_directory(package: Path) -> Path:
    """Completes the wheel's folder by its own stub, which lies elsewhere, and the project's backend."""
    folder = package / "backends"
    stub = "triton_python_backend_stub"
    _link(folder / "python" / stub, package / "python_backend_stubs" / sysconfig.get_python_version() / stub)
    _link(folder / "onnxruntime", BACKENDS / "onnxruntime")
    return folder


def _plain_repository(argument: str) -> str:
    option, _, path = argument.partition("=")
    return f"{option}={_plain(path)}" if option in ("--model-repository", "--model-store") else argument


def _plain(folder: Path | str) -> str:
    """Another name for a folder if its own has blanks or other letters than ASCII's.

    Triton's Python backend puts paths into a shell's command as they are, and its Python knows only ASCII.
    """
    if shlex.quote(path := str(folder)) == path or not Path(path).is_dir():
        return path
    descriptor = os.open(path, os.O_PATH)
    os.set_inheritable(descriptor, True)
    return f"/proc/{os.getpid()}/fd/{descriptor}"  # the server's too, which this process becomes


def _link(link: Path, target: Path) -> None:
    """Makes a symbolic link in one step, since several servers may start at once."""
    if link.is_symlink() and link.readlink() == target:
        return
    with tempfile.TemporaryDirectory(dir=link.parent) as scratch:
        new = Path(scratch) / link.name
        new.symlink_to(target)
        new.replace(link)


def _prepend(environment: dict[str, str], name: str, *folders: Path) -> None:
    environment[name] = os.pathsep.join([*map(str, folders), *filter(None, [environment.get(name)])])


if __name__ == "__main__":
    main()
