"""Memory of a server and of its Python models."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from server.launcher import family


@dataclass(frozen=True)
class Sample:
    """What the processes of a server have in memory; pages that several share count in parts (PSS).

    Attributes:
        time_s: When, seconds.
        mib: By name: "server", or the instance of a Python model.
    """

    time_s: float
    mib: dict[str, float]

    @property
    def total_mib(self) -> float:
        """Of all processes."""
        return sum(self.mib.values())


def sample(server: int, time_s: float) -> Sample:
    """Reads the memory of the process `server` and of those that it started."""
    mib: dict[str, float] = {}
    for pid in family(server):
        with suppress(OSError):  # It has ended.
            words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0")
            name = next((word for word in words if word.startswith("centernet_")), "server")
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()
            (kib,) = (int(line.split()[1]) for line in lines if line.startswith("Pss:"))
            mib[name] = mib.get(name, 0) + kib / 1024
    return Sample(time_s, mib)


def growth_of_last_third(samples: Sequence[Sample]) -> float:
    """By how much the peaks of the last third, its 95th percentile, are above those of the third before.

    What leaks raises the peaks. A line through all would not tell that from a heap that is emptied now and
    then: the preprocess models keep up to 256 MiB each for the next pictures.
    """
    third = len(samples) // 3
    before, last = (
        np.percentile([one.total_mib for one in part], 95)
        for part in (samples[-2 * third : -third], samples[-third:])
    )
    return float(last / before - 1)
