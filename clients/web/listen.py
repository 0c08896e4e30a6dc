"""The HTTP server itself: uvicorn, with an end to connections on which nothing happens."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

SILENCE_S = 30.0
"""Longest time for a request's head to arrive, and for an answer to be fetched."""

MAX_CONNECTIONS = 512
"""Open at once, below the usual limit of 1024 open files."""

FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedProtocol(H11Protocol):
    """A connection with limits that uvicorn lacks: it waits for ever for a head, and for a slow reader."""

    _watch: asyncio.TimerHandle | None = None
    _unsent = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Refuses what is beyond `MAX_CONNECTIONS`."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(FULL)
            transport.close()
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Stops the watch while a request is at work."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete and self._watch:
            self._watch.cancel()
            self._watch = None

    def on_response_complete(self) -> None:
        """Starts the watch: the answer is to be fetched, the next head to come."""
        self._expect()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the watch."""
        if self._watch:
            self._watch.cancel()
        super().connection_lost(exc)

    def _expect(self) -> None:
        if self._watch:
            self._watch.cancel()
        self._unsent = self.transport.get_write_buffer_size()
        self._watch = self.loop.call_later(SILENCE_S, self._end_unless_sending)

    def _end_unless_sending(self) -> None:
        if 0 < self.transport.get_write_buffer_size() < self._unsent:
            self._expect()
        else:
            self.transport.abort()


def make_server(app: Any) -> uvicorn.Server:
    """The server of an ASGI application."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,  # Nothing is kept, not even who asked.
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=10,
        h11_max_incomplete_event_size=16 * 1024,
    )
    return uvicorn.Server(config)


def serve(app: Any, listener: socket.socket, *, on_ready: Callable[[], None]) -> None:
    """Answers requests until SIGINT or SIGTERM; those in flight get ten seconds to finish.

    Args:
        app: The ASGI application.
        listener: A bound socket.
        on_ready: Called when requests are answered.
    """
    server = make_server(app)

    async def run() -> None:
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            on_ready()
        await serving

    asyncio.run(run())
