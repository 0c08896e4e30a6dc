"""An event loop whose clock jumps to the next timer, so that no test of waiting waits."""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    """Does not wait, but keeps the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list:
        if timeout is None:
            raise RuntimeError("the loop would wait for ever")
        self.now += max(timeout, 0)
        return super().select(0)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._clock = _Selector()
        super().__init__(self._clock)

    def time(self) -> float:
        return self._clock.now


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
