"""Trying again when the server is away for a moment."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from clients.errors import CenterNetError, DeadlineError, UnavailableError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How long to believe in a server that does not answer.

    Attributes:
        retries: Attempts after the first.
        timeout_s: Longest wait for the answer to one attempt, which is then given up and made again.
        deadline_s: Longest time for all attempts and the pauses between them.
        first_pause_s: Pause before the first retry; each further one is twice as long.
        longest_pause_s: Where the doubling ends.
    """

    retries: int = 20
    timeout_s: float = 10.0
    deadline_s: float = 60.0
    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0

    def pauses_s(self) -> Iterator[float]:
        """The pauses, seconds, each shortened at random by up to half: clients do not return in step."""
        for retry in range(self.retries):
            longest_s = min(self.first_pause_s * 2.0 ** min(retry, 99), self.longest_pause_s)
            yield longest_s * random.uniform(0.5, 1.0)  # noqa: S311


async def with_retries(
    attempt: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    on_pause: Callable[[CenterNetError, int], None] = lambda error, retry: None,
) -> T:
    """Awaits `attempt()` until it answers; only `UnavailableError` and silence are tried again.

    Args:
        attempt: Called once for each attempt.
        policy: The limits.
        on_pause: Told the error and the number of the retry to come, from 0.

    Raises:
        UnavailableError: The last attempt's, when retries or time are used up.
        DeadlineError: No answer to the last attempt, when retries or time are used up.
    """
    loop = asyncio.get_running_loop()
    begin = loop.time()
    deadline = begin + policy.deadline_s
    pauses_s = enumerate(policy.pauses_s())
    while True:
        error: CenterNetError
        try:
            async with asyncio.timeout(min(policy.timeout_s, deadline - loop.time())):
                return await attempt()
        except TimeoutError:
            error = DeadlineError(f"no answer within {loop.time() - begin:.1f} s")
        except UnavailableError as unavailable:
            error = unavailable
        retry, pause_s = next(pauses_s, (0, None))
        if pause_s is None or loop.time() + pause_s >= deadline:
            raise error
        on_pause(error, retry)
        await asyncio.sleep(pause_s)
