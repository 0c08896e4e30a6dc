"""The one clock of the benchmarks."""

import time
from collections.abc import Callable
from typing import Any


def times_ms(
    run: Callable[[], object], *, seconds: float = 0, at_least: int = 3, stream: Any = None, in_row: int = 1
) -> list[float]:
    """Milliseconds of each run, for so many seconds and so many runs at least.

    Args:
        run: What is timed; with a stream, it enqueues its work there.
        seconds: How long.
        at_least: Runs.
        stream: PyTorch's, to be timed by CUDA's events; without it, by the host's clock.
        in_row: Runs on a stream that are enqueued before the first of them is waited for.
    """
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < at_least or time.perf_counter() < end:
        if stream is None:
            begin = time.perf_counter()
            run()
            times.append(1000 * (time.perf_counter() - begin))
            continue
        import torch  # what is measured on the host's clock needs none

        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(in_row)]
        for first, last in pairs:
            first.record(stream)
            run()
            last.record(stream)
        stream.synchronize()
        times += [first.elapsed_time(last) for first, last in pairs]
    return times
