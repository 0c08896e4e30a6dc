"""One worker of an offline run: a shard in, a file of rows out, written whole or not at all."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import pickle
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import reduce
from pathlib import Path
from typing import Any

from centernet_image import contract

from clients import output
from clients.client import AsyncCenterNetClient
from clients.detections import EXTRAS, Detections
from clients.errors import CenterNetError, DeadlineError, SourceError, UnavailableError
from clients.retry import RetryPolicy, with_retries
from clients.shards import Load, Shard
from export.errors import ExportError

ATTEMPTS = 3
"""Of a shard whose worker dies: a picture that kills workers must not do so for ever."""

Row = tuple[str, Detections | None, str | None]
"""Name, detections, or else the reason why there are none."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What every worker is told.

    Attributes:
        folder: For the results.
        form: parquet or jsonl.
        threshold: Lowest score, or None for the server's own.
        urls: Servers.
        client: Further arguments of the clients.
        network: In place of servers: a file.
        plugin: The plan's.
        batch: Pictures in a batch of the network.
        gpu: Whether a worker has one.
        extras: What the model answers beyond a detector: names of `EXTRAS`.
    """

    folder: Path
    form: str
    threshold: float | None = None
    urls: tuple[str, ...] = ()
    client: dict[str, Any] = field(default_factory=dict)
    network: Path | None = None
    plugin: Path | None = None
    batch: int = 8
    gpu: bool = False
    extras: tuple[str, ...] = ()

    def part(self, number: int) -> Path:
        """A shard's file."""
        return self.folder / f"part-{number:05}.{self.form}"

    def attempts(self, number: int) -> Path:
        """Where attempts at a shard are counted."""
        return self.folder / f".part-{number:05}.attempts"


class Worker:
    """Works through the shards of one run, with one network or one connection to each server."""

    def __init__(self) -> None:
        self._detect: _Network | _Servers | None = None

    def __call__(self, job: dict[str, Any]) -> dict[str, Any]:
        """Does the shard `job["number"]`; `job["job"]` are its `Work` and `Shard`, pickled.

        Returns:
            `number`, `pictures`, `failed` (of them), `seconds`, and `error` (empty if the shard is done).
        """
        begin, error, counts = time.monotonic(), "", (0, 0)
        try:
            work, shard = pickle.loads(job["job"])  # noqa: S301
            with _attempt(work.attempts(job["number"])):
                if self._detect is None:
                    self._detect = _Network(work) if work.network else _Servers(work)
                counts = write(work, job["number"], self._detect(shard))
        except (CenterNetError, ExportError, OSError, ValueError, RuntimeError) as problem:
            error = f"{type(problem).__name__}: {problem}"
        return {
            "number": job["number"],
            "pictures": counts[0],
            "failed": counts[1],
            "seconds": time.monotonic() - begin,
            "error": " ".join(error.split()),
        }


@contextmanager
def _attempt(path: Path) -> Iterator[None]:
    """Counts in a file how often a shard was begun: Ray gives that of a dead worker to the next one for ever.

    Raises:
        CenterNetError: Too often: something in the shard kills its workers.
    """
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    if len(path.read_text(encoding="utf-8").splitlines()) > ATTEMPTS:
        raise CenterNetError(f"its worker died {ATTEMPTS} times")
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


class _Network:
    """The network in this process."""

    def __init__(self, work: Work) -> None:
        from clients import local

        assert work.network
        self._work = work
        self._detector = local.of_file(
            work.network, plugin=work.plugin, gpu=work.gpu, camera=work.client["camera"]
        )
        self._threshold = contract.SCORE_THRESHOLD if work.threshold is None else work.threshold
        self._readers = ThreadPoolExecutor(work.batch)

    def __call__(self, shard: Shard) -> Iterator[Row]:
        pictures = shard.pictures()
        while batch := list(itertools.islice(pictures, self._work.batch)):
            contents = list(self._readers.map(_loaded, [load for _, load in batch]))
            read = [content for content in contents if isinstance(content, bytes)]
            found = iter(self._detector.detect_each(read, threshold=self._threshold)) if read else iter(())
            for (name, _), content in zip(batch, contents, strict=True):
                answer = next(found) if isinstance(content, bytes) else content
                yield (name, None, str(answer)) if isinstance(answer, Exception) else (name, answer, None)


class _Servers:
    """Servers in turn: a picture that one does not answer goes to the next."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._runner = asyncio.Runner()
        policy: RetryPolicy = work.client["retry"]
        # Each attempt is another server's, so none of them tries again by itself.
        settings = work.client | {"retry": replace(policy, retries=0)}
        self._policy = policy

        async def connect() -> list[AsyncCenterNetClient]:
            return [AsyncCenterNetClient(url, **settings) for url in work.urls]

        # Workers begin with different ones.
        self._turn = itertools.cycle(self._runner.run(connect()))
        for _ in range(os.getpid() % len(work.urls)):
            next(self._turn)

    def __call__(self, shard: Shard) -> Iterator[Row]:
        rows = self._rows(shard)
        try:
            while (row := self._runner.run(_next(rows))) is not None:
                yield row
        finally:
            self._runner.run(_close(rows))

    async def _rows(self, shard: Shard) -> AsyncIterator[Row]:
        window: deque[asyncio.Task[Row]] = deque()
        pictures = shard.pictures()
        try:
            while True:
                picture = await asyncio.to_thread(next, pictures, None)
                if picture:
                    window.append(asyncio.create_task(self._row(*picture)))
                if not window:
                    return
                if not picture or len(window) >= self._work.client["concurrency"]:
                    yield await window.popleft()
        finally:
            for task in window:
                task.cancel()
            await asyncio.gather(*window, return_exceptions=True)

    async def _row(self, name: str, load: Load) -> Row:
        try:
            content = await asyncio.to_thread(load)
            return name, await with_retries(lambda: self._ask(content), self._policy), None
        except (UnavailableError, DeadlineError):
            raise  # Not the picture's fault: the shard is not done.
        except (OSError, CenterNetError) as error:
            return name, None, str(error)

    async def _ask(self, content: bytes) -> Detections:
        try:
            return await next(self._turn).detect(content, threshold=self._work.threshold)
        except DeadlineError as error:
            raise UnavailableError(str(error)) from error


async def _next(rows: AsyncIterator[Row]) -> Row | None:
    return await anext(rows, None)


async def _close(rows: Any) -> None:
    await rows.aclose()


def _loaded(load: Load) -> bytes | SourceError:
    try:
        return load()
    except SourceError as error:
        return error


def write(work: Work, number: int, rows: Iterable[Row]) -> tuple[int, int]:
    """Writes a shard's rows and returns how many there are, and how many of them are errors.

    Raises:
        OSError: The file cannot be written. There is none then, as after any error of `rows`.
    """
    path = work.part(number)
    # Of this attempt alone: a worker that was taken for dead may still write.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    counts = [0, 0]

    def counted() -> Iterator[Row]:
        for row in rows:
            counts[0] += 1
            counts[1] += row[2] is not None
            yield row

    try:
        if work.form == "jsonl":
            _write_lines(part, counted())
        else:
            _write_parquet(part, counted(), work.extras)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return counts[0], counts[1]


def _write_lines(path: Path, rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace") as file:
        for name, detections, error in rows:
            entry = {"image": name, "error": error} if detections is None else output.entry(name, detections)
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


COLUMNS = {
    "boxes": contract.DETECTION_BOXES,
    "scores": contract.DETECTION_SCORES,
    "class_ids": contract.DETECTION_CLASSES,
    "labels": contract.DETECTION_LABELS,
}


def schema(extras: Iterable[str]) -> Any:
    """The `pyarrow.Schema` of a run: a list of K for each tensor, in it what a detection has.

    Args:
        extras: See `Work`.
    """
    import pyarrow

    kinds = {"FP32": pyarrow.float32(), "INT32": pyarrow.int32(), "STRING": pyarrow.string()}

    def column(tensor: contract.Tensor) -> Any:
        # An open side of the contract, -1, is a list of any length for Arrow, too.
        return reduce(pyarrow.list_, reversed(tensor.shape), kinds[tensor.dtype])

    tensors = COLUMNS | {name: EXTRAS[name] for name in extras}
    columns = [(name, column(tensor)) for name, tensor in tensors.items()]
    return pyarrow.schema(
        [("name", pyarrow.string()), ("num", pyarrow.int32()), *columns, ("error", pyarrow.string())]
    )


def _write_parquet(path: Path, rows: Iterable[Row], extras: Iterable[str]) -> None:
    import pyarrow
    from pyarrow import parquet

    made = schema(extras)
    rows = iter(rows)
    with parquet.ParquetWriter(path, made) as writer:
        while some := list(itertools.islice(rows, 1000)):
            writer.write_table(pyarrow.Table.from_pylist([_record(*row) for row in some], made))


def _record(name: str, detections: Detections | None, error: str | None) -> dict[str, Any]:
    # What is no Unicode, a file name's odd bytes, is escaped.
    name = name.encode("utf-8", "backslashreplace").decode()
    if detections is None:
        return {"name": name, "error": error}
    return {
        "name": name,
        "num": len(detections),
        "boxes": detections.xyxy.tolist(),
        "scores": detections.scores.tolist(),
        "class_ids": detections.class_ids.tolist(),
        "labels": list(detections.labels),
    } | {name: values.tolist() for name, values in detections.extras.items()}
