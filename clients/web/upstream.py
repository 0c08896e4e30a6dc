"""What the gateway knows of its Triton server: limits, class names, health, where the time goes."""

from __future__ import annotations

import asyncio
import io
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from centernet_image import contract
from centernet_image.decode import Limits
from PIL import Image

from clients.client import AsyncCenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError, DeadlineError, RejectedError, UnavailableError
from clients.transport import shared_task

FACTS_AGE_S = 10.0
"""A server may be started again with another network: facts are asked for again after this time."""

HEALTH_AGE_S = 1.0
"""However often it is asked, the server is probed at most once in this time."""

HEALTH_TIMEOUT_S = 10.0
MAX_CLASSES = 65536


@dataclass(frozen=True)
class Facts:
    """What the server says of itself.

    Attributes:
        models: Those that a picture goes through, in order.
        nested: Of them, the network if the ensemble's first step asks it: its time is in that step's, too.
        limits: What a picture may cost; the project's defaults where the server does not tell.
        threshold: The lowest score that counts, if a request has none; the project's default likewise.
        classes: Names of all classes, in order of their indices; empty where the server does not tell.
    """

    models: tuple[str, ...] = ()
    nested: str = ""
    limits: Limits = field(default_factory=Limits)
    threshold: float = contract.SCORE_THRESHOLD
    classes: tuple[str, ...] = ()


class Upstream:
    """The client, and what its server says about itself."""

    def __init__(self, client: AsyncCenterNetClient) -> None:
        self.client = client
        self._facts: Facts | None = None
        self._asked_s = -math.inf
        self._learning: asyncio.Task[None] | None = None
        self._health: tuple[float, asyncio.Task[None]] | None = None

    async def facts(self, *, fresh: bool = False) -> Facts:
        """The server's facts.

        Args:
            fresh: Not older than `FACTS_AGE_S`; otherwise older ones are answered while they are renewed.

        Raises:
            CenterNetError: The server does not answer.
        """
        if self._learning is None and time.monotonic() - self._asked_s > FACTS_AGE_S:
            self._learning = shared_task(self._learn())
        if self._learning and (fresh or self._facts is None):
            await asyncio.shield(self._learning)
        return self._facts or Facts()

    async def check_health(self) -> None:
        """Detects in a small black picture: a server whose Python model has died still says that it is ready.

        Raises:
            CenterNetError: The server cannot detect; the text says why.
        """
        now = time.monotonic()
        if self._health is None or (self._health[1].done() and now - self._health[0] > HEALTH_AGE_S):
            self._health = now, shared_task(self._probe())
        await asyncio.shield(self._health[1])

    async def _probe(self) -> None:
        try:
            async with asyncio.timeout(HEALTH_TIMEOUT_S):
                await self.client.detect(_black())
        except TimeoutError:
            raise UnavailableError(f"no answer within {HEALTH_TIMEOUT_S:g} s") from None

    async def detect(
        self, picture: bytes, threshold: float | None, *, steps: bool
    ) -> tuple[Detections, dict[str, float]]:
        """Finds the objects in an encoded picture.

        Args:
            picture: The picture.
            threshold: Lowest score to answer, instead of the server's own.
            steps: Whether to say how long each model of the server took.

        Returns:
            The detections, and milliseconds by model, queues included. They are Triton's own figures; of
            other requests at the same time they are the mean.
        """
        if not steps:
            return await self.client.detect(picture, threshold=threshold), {}
        facts = await self.facts()
        models = facts.models
        before = _totals(await self.client.statistics())
        detections = await self.client.detect(picture, threshold=threshold)
        times: dict[str, float] = {}
        for _ in range(5):  # The last model's figures may come a moment after its answer.
            after = _totals(await self.client.statistics())
            times = {
                model: ms for model in models if (ms := _mean_ms(before.get(model), after.get(model, (0, 0))))
            }
            if len(times) == len(models):
                break
            await asyncio.sleep(0.002)
        if facts.nested in times and models[0] in times:
            times[models[0]] -= times[facts.nested]
        return detections, times

    async def _learn(self) -> None:
        try:
            self._facts = await self._ask()
            self._asked_s = time.monotonic()
        finally:
            self._learning = None

    async def _ask(self) -> Facts:
        ensemble = await self.client.config(self.client.model)
        steps = ensemble.get("ensemble_scheduling", {}).get("step", [])
        names = [step["model_name"] for step in steps]
        network = f"{self.client.model}_network"
        nested = network if names and network not in names else ""
        parameters: dict[str, str] = {}
        for model in names:
            config = await self.client.config(model)
            given = config.get("parameters", {})
            parameters |= {name: value.get("string_value", "") for name, value in given.items()}
        return Facts(
            models=(*names[:1], nested, *names[1:]) if nested else tuple(names),
            nested=nested,
            limits=Limits.of({name: text for name, text in parameters.items() if text.isdecimal()}),
            threshold=_score(parameters.get("score_threshold")),
            classes=await self._class_names(names[-1]) if names else (),
        )

    async def _class_names(self, model: str) -> tuple[str, ...]:
        """All class names, by the model that gives each detection its name: it is handed one of every class.

        Triton's configuration has no place for what an exported network brings along, and detections only
        name what was seen. How many classes there are, is found by halving.
        """
        try:
            return await _largest(lambda count: self._names(model, count), MAX_CLASSES)
        except RejectedError:  # A model of another kind.
            return ()

    async def _names(self, model: str, count: int) -> tuple[str, ...]:
        values = {
            contract.BOXES: np.zeros((1, count, 4)),
            contract.SCORES: np.ones((1, count, 1)),
            contract.CLASSES: np.arange(count).reshape(1, count, 1),
        }
        columns = [values[tensor] for tensor in contract.TASKS["detect"].columns]
        inputs: Mapping[contract.Tensor, np.ndarray] = {
            contract.PEAKS: np.concatenate(columns, axis=-1, dtype=np.float32),
            contract.IMAGE_SIZE: np.ones((1, 2), np.int32),
        }
        result = await self.client.infer(model, inputs)
        return tuple(label.decode() for label in result.as_numpy(contract.DETECTION_LABELS.name).ravel())


async def _largest(ask: Callable[[int], Awaitable[tuple[str, ...]]], limit: int) -> tuple[str, ...]:
    """The answer for the largest count up to `limit` that is not rejected; raises where 1 is rejected."""
    good, answer, bad = 1, await ask(1), limit + 1
    while bad - good > 1:
        count = min(2 * good, limit) if bad > limit else (good + bad) // 2
        try:
            answer = await ask(count)
            good = count
        except RejectedError:
            bad = count
    return answer


def _totals(statistics: Mapping[str, Any]) -> dict[str, tuple[int, int]]:
    """Requests answered and their nanoseconds, by model."""
    totals = {}
    for model in statistics.get("model_stats", []):
        stats = model.get("inference_stats", {})
        parts = ("queue", "compute_input", "compute_infer", "compute_output")
        ns = sum(int(stats.get(part, {}).get("ns", 0)) for part in parts)
        totals[model["name"]] = int(stats.get("success", {}).get("count", 0)), ns
    return totals


def _mean_ms(before: tuple[int, int] | None, after: tuple[int, int]) -> float | None:
    count, ns = (now - then for now, then in zip(after, before or (0, 0), strict=True))
    return ns / count / 1e6 if count > 0 else None


def _score(text: str | None) -> float:
    try:
        value = float(text or "nan")
    except ValueError:
        value = math.nan
    return value if 0 <= value <= 1 else contract.SCORE_THRESHOLD


def _black() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64)).save(stream, "PNG")
    return stream.getvalue()


def status_of(error: CenterNetError) -> int:
    """The HTTP status of what became of a request to the server."""
    if isinstance(error, DeadlineError):
        return 504
    if isinstance(error, UnavailableError):
        return 503
    cause = error.__cause__
    answered = str(cause.status()) if cause is not None and hasattr(cause, "status") else ""
    if answered not in ("400", "StatusCode.INVALID_ARGUMENT"):
        return 502
    return 413 if any(f"limit {name} is" in str(error) for name in ("max_bytes", "max_pixels")) else 400
