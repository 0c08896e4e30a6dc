"""Inputs through shared memory: the server reads them where the client wrote them.

A region is lent to one request at a time and used again by the next. Whatever ends the client, its regions
are taken back: by `close` or, where even that is not reached, by Python's resource tracker.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np

from clients.errors import CenterNetError, RejectedError, SharedMemoryError, UnavailableError
from clients.transport import Transport, shared_task

SMALLEST_REGION_BYTES = 1 << 20
CLOSE_TIMEOUT_S = 5.0
CLOSED = "is restricted"
"""What Triton says of an interface that wants a key."""
SYSTEM_FOLDER = "/dev/shm"  # noqa: S108


class Region:
    """Memory that this process made and the server may have mapped.

    Raises:
        SharedMemoryError: It cannot be made.
    """

    kind: str
    _library: Any
    """Module of tritonclient that made `_handle`."""
    _handle: Any

    def __init__(self, byte_size: int) -> None:
        self.name = f"centernet-{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self.byte_size = byte_size
        self.registered = False
        self._lock = asyncio.Lock()

    def write(self, parts: Sequence[np.ndarray]) -> None:
        """Copies arrays into the region, one after the other from its start."""
        self._library.set_shared_memory_region(self._handle, list(parts))

    def destroy(self) -> None:
        """Gives the memory back."""
        self._library.destroy_shared_memory_region(self._handle)

    def _registration(self) -> tuple[Any, ...]:
        raise NotImplementedError

    async def register(self, transport: Transport) -> None:
        """Makes the region known to the server, once; again after a restart.

        Raises:
            SharedMemoryError: The server cannot open it.
            UnavailableError: No server.
        """
        if not self.registered:
            # Not to be cancelled half-way: it could reach the server after `unregister`.
            await asyncio.shield(shared_task(self._register(transport)))

    async def unregister(self, transport: Transport) -> None:
        """Makes the server forget the region, once it no longer works on a request that was given up."""
        async with self._lock:
            self.registered = False
            while True:
                try:
                    await transport.call(f"unregister_{self.kind}_shared_memory", self.name)
                    return
                except RejectedError as error:
                    if "in use" not in str(error):
                        raise
                await asyncio.sleep(0.02)

    async def _register(self, transport: Transport) -> None:
        async with self._lock:
            try:
                await transport.call(f"register_{self.kind}_shared_memory", self.name, *self._registration())
            except (RejectedError, UnavailableError) as error:
                # Over gRPC, a closed interface is "unavailable", too.
                if isinstance(error, UnavailableError) and CLOSED not in str(error):
                    raise
                # A server that was only busy still knows the region.
                if "already in manager" not in str(error):
                    raise SharedMemoryError(
                        f"the server cannot open this client's {self.kind} shared memory: {error}; "
                        f"{_remedy(error)}, else use '--shared-memory none'"
                    ) from error
            self.registered = True


def _remedy(error: CenterNetError) -> str:
    """What the server lacks. Off by default since Triton 26.04; behind a key in the project's container."""
    if "disabled" in str(error) or CLOSED in str(error):
        return "start it with --allow-client-shm=true (the project's container: ALLOW_CLIENT_SHM=true)"
    return "it must run on this machine (a container with --ipc=host)"


class SystemRegion(Region):
    """POSIX shared memory, under /dev/shm."""

    kind = "system"

    def __init__(self, byte_size: int) -> None:
        from tritonclient.utils import shared_memory

        super().__init__(byte_size)
        # Writing to a full file system there kills the process (SIGBUS) instead of raising.
        free = shutil.disk_usage(SYSTEM_FOLDER).free
        if byte_size > free:
            raise SharedMemoryError(
                f"{SYSTEM_FOLDER} has {free} bytes left, a picture needs {byte_size}: enlarge it "
                "(docker: --shm-size) or use '--shared-memory none'"
            )
        self._library = shared_memory
        self._handle = shared_memory.create_shared_memory_region(
            self.name, self.name, byte_size, create_only=True
        )

    def _registration(self) -> tuple[Any, ...]:
        return f"/{self.name}", self.byte_size


class CudaRegion(Region):
    """Memory of the first GPU, shared by CUDA IPC."""

    kind = "cuda"

    def __init__(self, byte_size: int) -> None:
        super().__init__(byte_size)
        try:
            from tritonclient.utils import cuda_shared_memory

            self._library = cuda_shared_memory
            self._handle = cuda_shared_memory.create_shared_memory_region(self.name, byte_size, 0)
        except Exception as error:  # The bindings' own or RuntimeError, according to what is missing.
            raise SharedMemoryError(
                f"no CUDA shared memory: {_reason(error)}; use '--shared-memory system'"
            ) from error

    def _registration(self) -> tuple[Any, ...]:
        return self._library.get_raw_handle(self._handle), 0, self.byte_size


def _reason(error: Exception) -> str:
    """CUDA's own words: the bindings raise them as bytes, below an error that does not repeat them."""
    words = error.__cause__ and error.__cause__.args
    return words[0].decode() if words and isinstance(words[0], bytes) else str(error)


REGIONS: dict[str, type[Region]] = {"system": SystemRegion, "cuda": CudaRegion}


class RegionPool:
    """The regions of one client, as many as it had requests in flight at once.

    Raises:
        SharedMemoryError: `kind` is `cuda`, and there is no GPU.
    """

    def __init__(self, kind: str, transport: Transport) -> None:
        if kind == "cuda":
            CudaRegion(1).destroy()  # Known before the first picture: it is the caller's mistake.
        self._make = REGIONS[kind]
        self._transport = transport
        self._all: list[Region] = []
        self._free: list[Region] = []

    @asynccontextmanager
    async def lend(self, parts: Sequence[np.ndarray]) -> AsyncIterator[Region]:
        """A region that holds `parts`, for the time of the `async with`."""
        byte_size = sum(part.nbytes for part in parts)
        region = self._free.pop() if self._free else None
        if region and region.byte_size < byte_size:
            await self._drop(region)
            region = None
        if region is None:
            region = self._make(max(SMALLEST_REGION_BYTES, 1 << (byte_size - 1).bit_length()))
            self._all.append(region)
        try:
            region.write(parts)
            yield region
        finally:
            self._free.append(region)

    async def close(self) -> None:
        """Takes every region back, from the server as far as it answers."""
        await asyncio.gather(*(self._drop(region) for region in list(self._all)))
        self._free.clear()

    async def _drop(self, region: Region) -> None:
        self._all.remove(region)
        try:
            with suppress(CenterNetError, TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await region.unregister(self._transport)
        finally:
            region.destroy()
