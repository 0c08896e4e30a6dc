"""What every request passes: whose it may be, what every answer says, what is counted."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

DRAIN_BYTES = 2**27
DRAIN_S = 10.0
"""How much of a refused body is read, that its sender hears why."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
}


class Metrics:
    """Prometheus metrics of the gateway's own requests."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "centernet_web_requests",
            "Requests by path and status",
            ["path", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "centernet_web_request_seconds",
            "Time from a request's head to its answer",
            ["path"],
            registry=self.registry,
            buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )
        self.in_flight = Gauge(
            "centernet_web_pictures_in_flight", "Pictures being read or detected in", registry=self.registry
        )
        self.bytes = Counter(
            "centernet_web_picture_bytes", "Encoded bytes of pictures", registry=self.registry
        )


class Guard:
    """ASGI middleware, the outermost.

    Pages of other sites must not use the gateway through their visitors' browsers. They can send requests,
    but the browser then names them in `Origin`. They can give the gateway's address to a name of their own
    (DNS rebinding), but that name is then the `Host`: only addresses in numbers, localhost and allowed names
    pass.
    """

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str], origins: tuple[str, ...], metrics: Metrics
    ) -> None:
        self._app = app
        self._hosts = hosts
        self._origins = origins
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin, status = time.monotonic(), 499  # As nginx counts those who did not wait.
        body = _Body(scope, receive)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if status != 408:  # Whose rest has had its time.
                    await body.drain()
                _add_headers(message)
            await send(message)

        try:
            refusal = self._refusal(Headers(scope=scope))
            await (refusal or self._app)(scope, body.receive, answer)
        except Exception:
            status = 500
            raise
        finally:
            # Only the paths that exist: strangers must not fill the memory with names.
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - begin)

    def _refusal(self, headers: Headers) -> ASGIApp | None:
        host = headers.get("host", "").lower()
        if not _is_own(host, self._hosts):
            name = re.sub(r":\d+$", "", host)
            return _error(421, f"The host {name!r} is not allowed here: start clients.web with --allow-host.")
        origin = headers.get("origin", "").lower()
        if origin and origin.partition("://")[2] != host and origin not in self._origins:
            return _error(
                403, f"Pages of {origin!r} may not ask here: start clients.web with --allow-origin."
            )
        return None


class _Body:
    """A request's body, of which a refusal leaves a rest.

    Most clients read no answer before they have sent everything: if the connection ended earlier, they would
    see that and no reason.
    """

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = Headers(scope=scope)
        self._receive = receive
        # Who expects "100 Continue" sends nothing before it.
        self._coming = "expect" not in headers and bool(
            headers.get("transfer-encoding") or headers.get("content-length", "0") != "0"
        )

    async def receive(self) -> Message:
        message = await self._receive()
        self._coming = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def drain(self) -> None:
        """Reads and forgets what is still to come, within `DRAIN_BYTES` and `DRAIN_S`."""
        left = DRAIN_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._coming and left > 0:
                    left -= len((await self.receive()).get("body", b""))


def _error(status: int, message: str) -> ASGIApp:
    return JSONResponse({"error": message}, status)


def _is_own(host: str, allowed: frozenset[str]) -> bool:
    name = re.sub(r":\d+$", "", host)
    if name == "localhost" or name.endswith(".localhost") or name in allowed:
        return True
    try:
        ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers.setdefault(name, value)
    headers.setdefault("Cache-Control", "no-store")
