"""ci/setup with a stand-in for uv: what it makes anew, and what it says where that is not possible."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INTERPRETER = """#!/bin/bash
case "$*" in
  *executable*) echo "$0" ;;
  *LIBDIR*) dirname "$(realpath "$0")" ;;
  *) echo 3.12 ;;
esac
"""
UV = """#!/bin/bash
echo "$*" >>"$UV_CALLS"
[[ $1 != "$UV_FAILS" ]] || { echo "error: no network" >&2; exit 2; }
if [[ $1 == venv ]]; then
  mkdir -p .venv/bin .venv/triton
  ln -sf "$(command -v python3.12)" .venv/bin/python
fi
"""


class Clone:
    """A bare clone, and a machine with nothing but Python 3.12 and uv."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.tools = folder / "tools"
        self.calls = folder / "calls"
        self.environment = {"PATH": f"{self.tools}:/usr/bin:/bin", "UV_CALLS": str(self.calls)}
        self.environment["CENTERNET_CACHE"] = str(folder / "cache")
        (self.folder / "ci").mkdir(parents=True)
        for name in ("ci/setup", "ci/requirements.txt", "ci/requirements-server.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.tools.mkdir()
        (self.tools / "libpython3.12.so.1.0").touch()
        for name, text in (("python3.12", INTERPRETER), ("uv", UV)):
            (self.tools / name).write_text(text)
            (self.tools / name).chmod(0o755)

    def setup(self, script: str = "ci/setup", **environment: str) -> subprocess.CompletedProcess[str]:
        self.calls.write_text("")
        command = [self.folder / script]
        return subprocess.run(
            command, env=self.environment | environment, cwd="/", capture_output=True, text=True
        )

    def made_anew(self, **environment: str) -> bool:
        done = self.setup(**environment)
        assert (done.returncode, done.stderr) == (0, "")
        return "venv" in self.calls.read_text()


@pytest.fixture
def clone(tmp_path):
    return Clone(tmp_path)


def test_what_is_made_stays(clone):
    assert clone.made_anew()
    assert not clone.made_anew()


def test_a_clone_that_was_moved_is_made_anew(clone):
    clone.made_anew()
    clone.folder = clone.folder.rename(clone.folder.with_name("moved"))
    assert clone.made_anew()


def test_a_python_that_has_gone_is_replaced(clone):
    clone.made_anew()
    python = clone.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/usr/bin/python3.99")
    assert clone.made_anew()


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_what_uv_says_stands_above_one_line(clone, step):
    done = clone.setup(UV_FAILS=step)
    assert done.returncode == 1
    assert done.stderr == (
        "error: no network\n"
        "ci/setup: could not make .venv, for the reason above: mend that and run this again; "
        "what has arrived is kept\n"
    )
    assert clone.made_anew()


def test_a_cache_that_cannot_be_written_is_one_line(clone):
    done = clone.setup(CENTERNET_CACHE="/dev/null/cache")
    assert done.returncode == 1
    assert done.stderr == (
        "ci/setup: cannot write to /dev/null/cache, where downloads go: "
        "set XDG_CACHE_HOME to a folder of yours\n"
    )


def test_variables_of_another_python_change_nothing(clone):
    (clone.tools / "python3.12").write_text(
        INTERPRETER.replace("case", '[[ -z "$PYTHONHOME" ]] || exit 1\ncase')
    )
    assert clone.made_anew(PYTHONHOME="/nowhere", PYTHONPATH="/nowhere")


def test_a_link_to_the_script_and_cdpath_lead_to_its_clone(clone, tmp_path):
    (tmp_path / "other" / "ci").mkdir(parents=True)
    (clone.folder / "link").symlink_to("ci/setup")
    done = clone.setup("link", CDPATH=str(tmp_path / "other"))
    assert (done.returncode, done.stderr) == (0, "")
    assert (clone.folder / ".venv").is_dir()
