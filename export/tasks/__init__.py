"""What a network of the CenterNet family is for: one module for each task of the contract.

A new task:

1. `contract.TASKS`: the heads that it is known by, its further inputs, and what network and ensemble answer.
2. A module here: a `Task` that reads the heads at the peaks (`peaks.py` finds them) and returns the outputs
   in the contract's order; its defaults; the channels that its heads may have. An entry in `TASKS` below.
3. `export/verify/rows.py`: what counts as a difference of each new output.
4. `centernet_image/tasks/`: a module of the task's name takes the outputs back to the picture.
5. Tests: `tests/family.py` has a narrow network for each task; `tests/unit/test_tasks.py` exports it and puts
   it into every precision, `test_task_originals.py` holds the decode against the original's.
"""

from collections.abc import Collection, Mapping

from centernet_image import contract

from export.errors import UsageError
from export.tasks.boxes3d import Boxes3D
from export.tasks.detect import Detect
from export.tasks.embeddings import Embeddings
from export.tasks.keypoints import Keypoints
from export.tasks.landmarks import Landmarks
from export.tasks.task import Task
from export.tasks.tracks import Tracks

TASKS: dict[str, type[Task]] = {
    "detect": Detect,
    "keypoints": Keypoints,
    "boxes3d": Boxes3D,
    "embeddings": Embeddings,
    "tracks": Tracks,
    "landmarks": Landmarks,
}
DETECT = "detect"


def outputs_of(name: str) -> list[str]:
    """Names of what a task's network answers, in order."""
    return [tensor.name for tensor in (*contract.TASKS[name].columns, contract.PEAKS)]


def recognise(heads: Collection[str]) -> list[str]:
    """The tasks that heads may be for: `detect` only if it is no other."""
    found = [name for name, task in contract.TASKS.items() if task.heads and {"hm", *task.heads} <= {*heads}]
    return found or ([DETECT] if {"hm", "wh"} <= {*heads} else [])


def choose(heads: Mapping[str, int], *, stems: Collection[str] = (), name: str | None = None) -> str:
    """The task of a network.

    Args:
        heads: Its channels, by head.
        stems: What it reads beyond the picture: some of `networks.STEMS`.
        name: What it is said to be, where its heads do not tell.

    Raises:
        UsageError: The heads are of no task, of several, or not of the one that is asked for.
    """
    shown = format_heads(heads)
    candidates = recognise(heads)
    if name is None and len(candidates) != 1:
        of = " and ".join(candidates) or "no known task"
        raise UsageError(
            f"found heads {shown or 'none'} of {of}, expected those of one: {_remedy(candidates)}"
        )
    name = name or candidates[0]
    if name == DETECT and "landmarks" in heads:
        raise UsageError(
            f"--task {DETECT}: found heads {shown}, whose wh a detector would misread: leave out --task"
        )
    required = ("hm", *contract.TASKS[name].heads)
    missing = [head for head in required if head not in heads]
    if missing:
        raise UsageError(f"--task {name}: found heads {shown or 'none'}, expected also {', '.join(missing)}")
    expected = TASKS[name].channels(heads)
    wrong = [head for head, channels in expected.items() if heads.get(head, 0) not in channels]
    if wrong:
        allowed = "; ".join(
            " or ".join(f"{head}={count}" if count else "none" for count in dict.fromkeys(expected[head]))
            for head in wrong
        )
        raise UsageError(f"found heads {shown}, expected {allowed} for {name}")
    if contract.TASKS[name].inputs and "pre_img" not in stems:
        raise UsageError(
            f"found heads of {name}, but no layers that read the frame before (pre_img): "
            f"--task {DETECT} takes the boxes alone"
        )
    return name


def _remedy(candidates: Collection[str]) -> str:
    if candidates:
        return f"say which by --task {' or '.join(candidates)}"
    each = "; ".join(
        f"{name}: {', '.join(('hm', *(task.heads or ('wh',))))}" for name, task in contract.TASKS.items()
    )
    return f"{each}; --form heads takes any"


def format_heads(heads: Mapping[str, int]) -> str:
    """Writes heads as the command line does: `hm=80,reg=2,wh=2`."""
    return ",".join(f"{name}={channels}" for name, channels in heads.items())
