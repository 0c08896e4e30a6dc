"""Triton's two protocols behind one face: calls by name, errors as this package's own."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from clients.errors import CenterNetError, RejectedError, UnavailableError

PORTS = {"grpc": 8001, "http": 8000}
"""Triton's default port of each protocol."""

STOPPING = "has no available versions"
"""What a server that is about to stop says of its models, under "not found"."""

FULL = "limit max_streams"
"""Of one that keeps as many videos as it may: that lasts until one of them ends, not for a moment."""


def shared_task(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task of which several may want the outcome, or nobody: its error is not worth a log then."""
    task = asyncio.create_task(work)
    task.add_done_callback(lambda task: task.cancelled() or task.exception())
    return task


@dataclass(frozen=True, kw_only=True)
class Tls:
    """Encrypt the connection.

    Attributes:
        ca: PEM file of the authorities that may vouch for the server; the system's when None.
        certificate: PEM file of the client's own certificate, with its `key`.
        key: PEM file of the client's private key.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None


class Transport:
    """A connection to one server. Use it from one event loop.

    Args:
        url: `host:port`, without a scheme.
        tls: How to encrypt, or None for plain text.
        headers: Sent with every call (gRPC metadata, HTTP headers), for example an API key.

    Attributes:
        tensors: Module that has the protocol's `InferInput`.
    """

    _module: str

    def __init__(self, url: str, *, tls: Tls | None, headers: Mapping[str, str]) -> None:
        self.url = url
        self._tls = tls
        self._headers = headers
        # Not where they are first used: an import may take seconds, which are not the server's time.
        self.tensors = import_module(self._module)
        self._aio = import_module(f"{self._module}.aio")

    @cached_property
    def _api(self) -> Any:
        raise NotImplementedError

    def _translated(self, error: Exception) -> CenterNetError | None:
        raise NotImplementedError

    async def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of tritonclient's asyncio client.

        Raises:
            UnavailableError: No connection, or the server says that it is not available.
            RejectedError: Any other error that the server answered.
        """
        try:
            # A copy each: the HTTP client writes the size of the request into the mapping that it is given.
            return await getattr(self._api, method)(*args, headers=dict(self._headers), **kwargs)
        except Exception as error:
            translated = self._translated(error)
            if translated is None:
                raise
            raise translated from error

    async def json(self, method: str, *args: Any) -> dict[str, Any]:
        """As `call`, for methods that answer JSON over HTTP: the same JSON over either protocol.

        Over gRPC whole numbers of 64 bits come as text, as Protobuf has it.
        """
        return await self.call(method, *args)

    async def close(self) -> None:
        """Ends the connection."""
        if "_api" in self.__dict__:
            await self._api.close()


class GrpcTransport(Transport):
    """Triton over gRPC."""

    _module = "tritonclient.grpc"

    @cached_property
    def _api(self) -> Any:
        options = [
            # A proxy of the environment knows nothing of this machine's own ports.
            ("grpc.enable_http_proxy", int(not self.url.startswith(("localhost:", "127.", "[::1]")))),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", -1),
            # By default the pause before it dials again grows to two minutes.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 1000),
            # A machine that has vanished closes no connection: without these every retry would wait on it.
            ("grpc.min_reconnect_backoff_ms", 5000),
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 20_000),
            ("grpc.http2.ping_timeout_ms", 20_000),
        ]
        tls = self._tls
        return self._aio.InferenceServerClient(
            self.url,
            ssl=tls is not None,
            root_certificates=tls and tls.ca,
            certificate_chain=tls and tls.certificate,
            private_key=tls and tls.key,
            channel_args=options,
        )

    async def json(self, method: str, *args: Any) -> dict[str, Any]:
        """See `Transport.json`."""
        return await self.call(method, *args, as_json=True)

    def _translated(self, error: Exception) -> CenterNetError | None:
        from tritonclient.utils import InferenceServerException

        if not isinstance(error, InferenceServerException):
            return None
        # Not by this client, which asyncio would tell: a server that stops cancels what is in flight.
        return _answered(error, unavailable=("StatusCode.UNAVAILABLE", "StatusCode.CANCELLED"))


class HttpTransport(Transport):
    """Triton over HTTP/REST."""

    _module = "tritonclient.http"

    @cached_property
    def _api(self) -> Any:
        tls = self._tls
        context = None
        if tls:
            context = ssl.create_default_context(cafile=tls.ca)
            if tls.certificate:
                context.load_cert_chain(tls.certificate, tls.key)
        # Time limits are the caller's, by asyncio.timeout.
        return self._aio.InferenceServerClient(
            self.url, ssl=tls is not None, ssl_context=context, conn_limit=0, conn_timeout=None
        )

    async def json(self, method: str, *args: Any) -> dict[str, Any]:
        """See `Transport.json`."""
        content = await self.call(method, *args)
        # Of a model or of all: every answer has one of these.
        if not isinstance(content, dict) or content.keys().isdisjoint({"name", "model_stats"}):
            raise self._stranger()
        return content

    def _stranger(self) -> RejectedError:
        return RejectedError(f"{self.url} does not answer as Triton does, expected its HTTP port")

    def _translated(self, error: Exception) -> CenterNetError | None:
        import aiohttp
        from tritonclient.utils import InferenceServerException

        if isinstance(error, aiohttp.ClientConnectorError):
            return UnavailableError(f"cannot connect: {_reason(error.os_error)}")
        if isinstance(error, aiohttp.ClientError):
            return UnavailableError(str(error) or type(error).__name__)
        if isinstance(error, ValueError):  # Of what cannot be parsed.
            return self._stranger()
        if not isinstance(error, InferenceServerException):
            return None
        return _answered(error, unavailable=("502", "503"))


def _reason(error: OSError) -> str:
    """Why there is no connection: asyncio's text repeats the address and leaves out the reason."""
    if error.errno and not isinstance(error, (ssl.SSLError, socket.gaierror)):
        return os.strerror(error.errno)
    return error.strerror or str(error) or type(error).__name__


def _answered(error: Any, *, unavailable: tuple[str, ...]) -> CenterNetError:
    """The error of an answer whose status may be one of `unavailable`."""
    message = error.message()
    away = (error.status() in unavailable and FULL not in message) or STOPPING in message
    message = re.sub(r"^in ensemble '[^']*', |\[request id: <id_unknown>\] |^.*last error: ", "", message)
    return (UnavailableError if away else RejectedError)(message)


TRANSPORTS: dict[str, type[Transport]] = {"grpc": GrpcTransport, "http": HttpTransport}
