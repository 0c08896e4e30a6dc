"""What goes wrong in the demo is one line."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_an_out_that_is_no_folder(tmp_path):
    shutil.copytree(ROOT / "demo", tmp_path / "demo", ignore=shutil.ignore_patterns("*.pth"))
    (tmp_path / "out").touch()
    done = subprocess.run(
        [sys.executable, "-m", "demo.run"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr == f"ci/demo: [Errno 17] File exists: '{tmp_path / 'out'}'\n"
