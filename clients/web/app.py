"""The gateway's application: what it answers at which path."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from centernet_image.codecs.common import ImageError
from centernet_image.decode import Limits, decode
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from PIL import ExifTags, Image
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from clients import output
from clients.client import AsyncCenterNetClient
from clients.detections import Detections
from clients.errors import CenterNetError
from clients.web.body import RequestError, read_picture
from clients.web.guard import Guard, Metrics
from clients.web.upstream import Facts, Upstream, status_of

STATIC = Path(__file__).with_name("static")
T = TypeVar("T")

ERROR = {"type": "object", "properties": {"error": {"type": "string"}}, "required": ["error"]}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
    for status, text in {
        400: "Not a picture that the server can read, or a parameter out of range",
        408: "The picture did not arrive in time",
        413: "Too many bytes or pixels",
        502: "The server failed",
        503: "The server is away, or too many pictures are in flight; `Retry-After` says when to ask again",
        504: "The server is silent",
    }.items()
}
DETECTION = {
    "type": "object",
    "properties": {
        "label": {"type": "string"},
        "class_id": {"type": "integer"},
        "score": {"type": "number"},
        "xyxy": {"type": "array", "items": {"type": "number"}, "description": "x1 y1 x2 y2, pixels"},
    },
}
FOUND = {
    "description": "What was found, best first; with `draw` the picture with boxes",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    "image": {"type": "string"},
                    "detections": {"type": "array", "items": DETECTION},
                },
            }
        },
        "image/jpeg": {},
        "image/png": {},
    },
}
BINARY = {"type": "string", "format": "binary"}
PICTURE = {
    "required": True,
    "content": {
        "application/octet-stream": {"schema": BINARY},
        "multipart/form-data": {"schema": {"type": "object", "properties": {"picture": BINARY}}},
    },
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the gateway allows.

    Attributes:
        max_in_flight: Pictures being read or detected in at once; more are refused.
        hosts: Names that it is reached by, beside localhost and addresses in numbers.
        origins: Other sites whose pages may ask.
    """

    max_in_flight: int = 8
    hosts: frozenset[str] = frozenset()
    origins: tuple[str, ...] = ()


def make_app(client: AsyncCenterNetClient, settings: Settings) -> FastAPI:
    """The ASGI application around `client`, which it closes in the end."""
    metrics = Metrics()
    slots = asyncio.Semaphore(settings.max_in_flight)
    upstream = Upstream(client)
    # The largest pictures take half a gigabyte each while they are drawn.
    drawing_slots = asyncio.Semaphore(2)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        # The server's facts and seconds of imports: the first request need not wait for them.
        warm = asyncio.gather(asyncio.to_thread(_colors), _facts_if_any(upstream))
        yield
        warm.cancel()
        await client.close()

    app = FastAPI(
        title="CenterNet",
        description='Objects in pictures. Errors are JSON: `{"error": "one sentence"}`.',
        version="1",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Content-Type"],
            expose_headers=["Retry-After", "Server-Timing"],
        )
    app.add_middleware(Guard, hosts=settings.hosts, origins=settings.origins, metrics=metrics)
    _add_error_handlers(app)

    @app.post("/detect", responses={200: FOUND, **ERRORS}, openapi_extra={"requestBody": PICTURE})
    async def detect(
        request: Request,
        threshold: Annotated[
            float | None, Query(ge=0, le=1, description="Lowest score; the server's own if not given")
        ] = None,
        draw: Annotated[bool, Query(description="Answer the picture with boxes instead of JSON")] = False,
        steps: Annotated[
            bool, Query(description="Say in `Server-Timing` how long each model took, too")
        ] = False,
    ) -> Response:
        """Finds the objects in one picture: the body, or a form's file. The JSON is that of detect.py."""
        if slots.locked():
            text = f"{settings.max_in_flight} pictures are in flight, as many as allowed: ask again."
            raise RequestError(503, text, 1)
        async with slots:
            with metrics.in_flight.track_inprogress():
                clock = Clock()
                facts = await _facts_if_any(upstream)
                upload = await read_picture(request, facts.limits.max_bytes)
                metrics.bytes.inc(len(upload.picture))
                clock.lap("receive")
                detections, models = await _unless_gone(
                    request, upstream.detect(upload.picture, threshold, steps=steps)
                )
                clock.lap("detect")
                clock.laps.update(models)
                if draw:
                    async with drawing_slots:
                        drawing, kind = await asyncio.to_thread(
                            _draw, upload.picture, detections, facts.limits, upstream.client.camera
                        )
                    clock.lap("draw")
                    return Response(drawing, media_type=kind, headers=clock.headers())
                headers = clock.headers() | _turned(upload.picture)
                return JSONResponse(output.entry(upload.name, detections), headers=headers)

    @app.get("/model", responses={status: ERRORS[status] for status in (502, 503, 504)})
    async def model() -> dict[str, Any]:
        """What the server serves: class names, limits of a picture, threshold; and a colour for each class.

        `colors` are those of detect.py, for boxes and for the text on them; classes beyond them start anew.
        `classes` is empty where the server's model does not name them.
        """
        facts = await upstream.facts(fresh=True)
        boxes, texts = await asyncio.to_thread(_colors)
        return {
            "model": client.model,
            "classes": facts.classes,
            "threshold": facts.threshold,
            "limits": vars(facts.limits),
            "colors": [{"box": box, "text": text} for box, text in zip(boxes, texts, strict=True)],
        }

    @app.get("/health", responses={503: ERRORS[503]})
    async def health() -> dict[str, str]:
        """Whether the server can detect, by a real detection."""
        try:
            await upstream.check_health()
        except CenterNetError as error:
            raise RequestError(503, _away(error), 2) from error
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def own_metrics() -> Response:
        """Prometheus metrics of the gateway's own requests."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> FileResponse:
        return FileResponse(STATIC / "docs.html", headers={"Cache-Control": "no-cache"})

    (swagger,) = find_spec("fastapi_offline").submodule_search_locations  # type: ignore[union-attr,misc]
    app.mount("/docs/swagger", StaticFiles(directory=Path(swagger) / "static"))
    app.mount("/static", StaticFiles(directory=STATIC))
    # FastAPI's own form of error is not used here.
    schema = app.openapi()
    schema.pop("components", None)
    for operation in schema["paths"].values():
        for method in operation.values():
            method["responses"].pop("422", None)
    return app


class Clock:
    """Times a request's steps, for the header `Server-Timing`."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Ends a step."""
        now = time.perf_counter()
        self.laps[name], self._last = (now - self._last) * 1000, now

    def headers(self) -> dict[str, str]:
        """The header, milliseconds by step."""
        return {"Server-Timing": ", ".join(f"{name};dur={ms:.1f}" for name, ms in self.laps.items())}


async def _facts_if_any(upstream: Upstream) -> Facts:
    try:
        return await upstream.facts()
    except CenterNetError:
        return Facts()  # The detection will say what is wrong.


async def _unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Awaits `work`, and cancels it when the client has gone.

    Raises:
        ClientDisconnect: It has.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _turned(picture: bytes) -> dict[str, str]:
    """A header with a WebP's EXIF orientation, which the server obeys and browsers do not."""
    orientation = 1
    if picture[8:12] == b"WEBP":
        # The server has read it; what Pillow says of it beyond that is not the client's problem.
        with suppress(Exception), Image.open(io.BytesIO(picture), formats=["WEBP"]) as header:
            orientation = header.getexif().get(ExifTags.Base.Orientation, 1)
    return {} if orientation == 1 else {"WebP-Orientation": str(orientation)}


def _draw(
    picture: bytes, detections: Detections, limits: Limits, camera: np.ndarray | None
) -> tuple[bytes, str]:
    """The picture with its detections, encoded, and its media type: PNG for PNG, else JPEG."""
    import cv2

    from clients.drawing import draw, enlarged

    try:
        drawing = draw(*enlarged(decode(picture, limits), detections, camera))
    except ImageError as error:
        raise RequestError(400, f"The picture cannot be drawn: {error}.") from error
    if picture.startswith(b"\x89PNG"):
        return cv2.imencode(".png", drawing)[1].tobytes(), "image/png"
    return cv2.imencode(".jpg", drawing, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes(), "image/jpeg"


@cache
def _colors() -> tuple[list[str], list[str]]:
    """Colours by class as the web writes them: of boxes, and of text on them."""
    from clients.drawing import palette

    boxes, texts = palette()
    return [color.as_hex() for color in boxes.colors], [color.as_hex() for color in texts.colors]


def _away(error: CenterNetError) -> str:
    return f"The server is away: {error}."


def _add_error_handlers(app: FastAPI) -> None:
    def answer(status: int, message: str, retry_after_s: int | None = None) -> JSONResponse:
        headers = {} if retry_after_s is None else {"Retry-After": str(retry_after_s)}
        return JSONResponse({"error": message}, status, headers)

    @app.exception_handler(RequestError)
    async def request_error(_: Request, error: RequestError) -> Response:
        return answer(error.status, str(error), error.retry_after_s)

    @app.exception_handler(CenterNetError)
    async def server_problem(_: Request, error: CenterNetError) -> Response:
        status = status_of(error)
        text = str(error).removeprefix("image: ")
        if status == 503:
            return answer(503, _away(error), 2)
        sentences = {
            400: f"This is no picture that the server can read: {text}.",
            413: f"The picture is too large: {text}.",
            504: f"The server is silent: {text}.",
        }
        return answer(status, sentences.get(status, f"The server failed: {text}."))

    @app.exception_handler(RequestValidationError)
    async def wrong_parameter(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        expected = "a number from 0 to 1" if first["loc"][-1] == "threshold" else "0 or 1"
        return answer(400, f"{first['loc'][-1]}: found {str(first['input'])[:40]!r}, expected {expected}.")

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = answer(error.status_code, f"{error.detail}: {request.method} {request.url.path[:80]}.")
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientDisconnect)
    async def gone(_: Request, __: ClientDisconnect) -> Response:
        return Response(status_code=499)  # Nobody reads it; it is counted.

    @app.exception_handler(Exception)
    async def defect(_: Request, __: Exception) -> Response:
        return answer(500, "The gateway failed: its log says why.")
