"""A stand-in for NVIDIA's nvidia-cuda-mps-control, which there is only where there is a GPU."""

import sys

PROGRAM = """#!{python}
import os, pathlib, sys
said = " ".join(sys.argv[1:]) or sys.stdin.read().strip()
with pathlib.Path(__file__).with_name("log").open("a") as log:
    print(os.environ["CUDA_MPS_PIPE_DIRECTORY"], said, file=log)
assert os.environ["CUDA_MPS_LOG_DIRECTORY"] and "CUDA_VISIBLE_DEVICES" not in os.environ
if said == "get_server_list":
    print({servers!r})
if said == "-d" and {fails}:
    sys.exit("no GPU")
"""


def standin(folder, *, servers="17", fails=False):
    """Path of a program of that name, which writes what it is told to a file `log` beside it."""
    program = folder / "mps" / "nvidia-cuda-mps-control"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable, servers=servers, fails=fails))
    program.chmod(0o755)
    return program
