"""CUDA shared memory where there is no GPU: refused, or with a stand-in for tritonclient's bindings."""

import asyncio
import gc
import re
from typing import Any

import numpy as np
import pytest
import torch

from clients import (
    AsyncCenterNetClient,
    CenterNetError,
    RejectedError,
    SharedMemoryError,
    UnavailableError,
    detect,
)
from clients.shared_memory import SMALLEST_REGION_BYTES, RegionPool

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")


@without_gpu
def test_without_cuda_it_is_misuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    words = ["detect.py", "a.png", "--url", "127.0.0.1:9", "--shared-memory", "cuda"]
    monkeypatch.setattr("sys.argv", words)
    with pytest.raises(SystemExit) as stop:
        detect.main()
    assert stop.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("detect.py: error: no CUDA shared memory: ")
    assert line.endswith("use '--shared-memory system'")


@without_gpu
def test_without_cuda_there_is_no_client() -> None:
    with pytest.raises(SharedMemoryError, match="no CUDA shared memory"):
        AsyncCenterNetClient(shared_memory="cuda")


class Steps:
    """Stands for the bindings and for the connection to the server; writes down who was asked what."""

    def __init__(self) -> None:
        self.taken: list[tuple[Any, ...]] = []
        self.error: CenterNetError | None = None

    def create_shared_memory_region(self, name: str, byte_size: int, device: int) -> str:
        self.taken.append(("create", byte_size, device))
        return f"handle of {name}"

    def set_shared_memory_region(self, handle: str, parts: list[np.ndarray]) -> None:
        self.taken.append(("copy", handle, *(part.tolist() for part in parts)))

    def get_raw_handle(self, handle: str) -> bytes:
        return f"raw {handle}".encode()

    def destroy_shared_memory_region(self, handle: str) -> None:
        self.taken.append(("destroy",))

    async def call(self, method: str, *arguments: Any) -> None:
        self.taken.append((method, *arguments))
        if self.error:
            raise self.error


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    steps = Steps()
    monkeypatch.setattr("tritonclient.utils.cuda_shared_memory", steps, raising=False)
    return steps


@pytest.mark.parametrize("error", [None, UnavailableError("gone")], ids=["server", "server gone"])
def test_order_of_a_cuda_region(steps: Steps, error: CenterNetError | None) -> None:
    transport: Any = steps

    async def main() -> str:
        pool = RegionPool("cuda", transport)
        for value in (7, 8):
            async with pool.lend([np.array([value], np.uint8), np.array([1, 2], np.uint8)]) as region:
                await region.register(transport)
                steps.taken.append(("infer",))
        steps.error = error
        await pool.close()
        return region.name

    name = asyncio.run(main())
    handle = f"handle of {name}"
    assert steps.taken == [
        ("create", 1, 0),
        ("destroy",),
        ("create", SMALLEST_REGION_BYTES, 0),
        ("copy", handle, [7], [1, 2]),
        ("register_cuda_shared_memory", name, f"raw {handle}".encode(), 0, SMALLEST_REGION_BYTES),
        ("infer",),
        ("copy", handle, [8], [1, 2]),
        ("infer",),
        ("unregister_cuda_shared_memory", name),
        ("destroy",),
    ]


@pytest.mark.parametrize(
    "said",
    [
        "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable.",
        "This protocol is restricted, expecting header 'triton-grpc-protocol-admin-key'",
    ],
)
def test_server_that_takes_no_shared_memory(steps: Steps, said: str) -> None:
    steps.error = RejectedError(said)

    async def register() -> None:
        async with RegionPool("cuda", steps).lend([np.zeros(1, np.uint8)]) as region:  # type: ignore[arg-type]
            await region.register(steps)  # type: ignore[arg-type]

    expected = (
        f"{said}; start it with --allow-client-shm=true (the project's container: ALLOW_CLIENT_SHM=true)"
    )
    with pytest.raises(SharedMemoryError, match=re.escape(f"{expected}, else use '--shared-memory none'")):
        asyncio.run(register())


def test_a_registration_that_nobody_waits_for_fails_in_silence(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[dict[str, Any]] = []
    answered = asyncio.Event()

    async def call(*_: Any) -> None:
        await answered.wait()
        raise UnavailableError("gone")

    monkeypatch.setattr(steps, "call", call)

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: logged.append(context))
        async with RegionPool("cuda", steps).lend([np.zeros(1, np.uint8)]) as region:  # type: ignore[arg-type]
            request = asyncio.create_task(region.register(steps))  # type: ignore[arg-type]
            await asyncio.sleep(0)  # It asks the server,
            await asyncio.sleep(0)
            request.cancel()
            await asyncio.wait({request})
            answered.set()  # which answers when the request has been given up.
            while len(asyncio.all_tasks()) > 1:
                await asyncio.sleep(0)
        gc.collect()
        assert request.cancelled()

    asyncio.run(main())
    assert logged == []
