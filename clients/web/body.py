"""The picture in a request: the body itself, or a form's file; bounded in bytes and time, in memory only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import NamedTuple

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

READ_S = 60.0
"""Longest time for a picture to arrive."""

FORM_BYTES = 64 * 1024
"""What a form may have beside its file."""


class RequestError(Exception):
    """What a person is told, with the status of the answer.

    Attributes:
        status: HTTP status.
        retry_after_s: When to ask again, or None.
    """

    def __init__(self, status: int, message: str, retry_after_s: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class Upload(NamedTuple):
    """An encoded picture and its name."""

    name: str
    picture: bytes


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # Never to disk: the stream is bounded.


async def read_picture(request: Request, max_bytes: int) -> Upload:
    """The picture that a request brings.

    Raises:
        RequestError: None, too large, not a form as announced, or too slow.
        ClientDisconnect: Nobody waits for an answer any more.
    """
    form = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    limit = max_bytes + FORM_BYTES if form == "multipart/form-data" else max_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(f"{announced} bytes", max_bytes)
    try:
        async with asyncio.timeout(READ_S):
            if form != "multipart/form-data":
                return Upload(
                    "picture", b"".join([part async for part in _bounded(request, limit, max_bytes)])
                )
            upload = await _form_file(request, limit, max_bytes)
    except TimeoutError:
        raise RequestError(408, f"The picture did not arrive within {READ_S:g} s.") from None
    if len(upload.picture) > max_bytes:
        raise _too_large(f"{len(upload.picture)} bytes", max_bytes)
    return upload


async def _bounded(request: Request, limit: int, max_bytes: int) -> AsyncGenerator[bytes, None]:
    total = 0
    async for part in request.stream():
        total += len(part)
        if total > limit:
            raise _too_large(f"more than {max_bytes} bytes", max_bytes)
        yield part


async def _form_file(request: Request, limit: int, max_bytes: int) -> Upload:
    stream = _bounded(request, limit, max_bytes)
    parser = _InMemory(request.headers, stream, max_files=1, max_fields=16, max_part_size=FORM_BYTES)
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RequestError(400, f"The form cannot be read: {error.message.rstrip('.')}.") from error
    except (LookupError, ValueError) as error:  # Of the charset that it announces, or for its names.
        raise RequestError(400, f"The form's names cannot be read: {error}.") from error
    try:
        for value in form.values():
            if isinstance(value, UploadFile):
                name = (value.filename or "picture").encode(errors="replace").decode()
                return Upload(name, await value.read())
    finally:
        await form.close()
    raise RequestError(400, "Found a form without a file, expected one: curl -F picture=@FILE.")


def _too_large(found: str, max_bytes: int) -> RequestError:
    return RequestError(
        413, f"The picture is too large: found {found}, the server takes at most {max_bytes}."
    )
