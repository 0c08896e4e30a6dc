"""An event loop whose clock jumps to the next timer, so that no test of waiting waits."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Loop(asyncio.SelectorEventLoop):
    _now = 0.0

    def time(self) -> float:
        return self._now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self._now = max(self._now, self._scheduled[0].when())  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


def run(coroutine: Coroutine[Any, Any, T]) -> tuple[T | Exception, float]:
    """What the coroutine returned or raised, and the virtual seconds that it took."""

    async def timed() -> tuple[T | Exception, float]:
        loop = asyncio.get_running_loop()
        try:
            return await coroutine, loop.time()
        except Exception as error:
            return error, loop.time()

    with asyncio.Runner(loop_factory=_Loop) as runner:
        return runner.run(timed())
