"""Pictures behind http(s) addresses."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from clients.errors import SourceError

if TYPE_CHECKING:
    import requests

SILENCE_S = 10.0
DEADLINE_S = 60.0
"""For a whole picture, however it trickles in."""

CHUNK = 2**16

T = TypeVar("T")


def is_picture(url: str) -> bool:
    """Whether a picture is behind an address, by what the server says and by how the content begins.

    Raises:
        SourceError: Nobody answers, or it is text.
    """
    return _within_deadline(partial(_is_picture, url))


def read(url: str, *, max_bytes: int) -> bytes:
    """The picture behind an address, bounded in bytes and time.

    Raises:
        SourceError: It cannot be had.
    """
    return _within_deadline(partial(_read, url, max_bytes))


def _is_picture(url: str) -> bool:
    from centernet_image.codecs.signatures import MAX_START, describe
    from centernet_image.decode import begins_like_a_picture

    with _get(url) as response:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/"):
            return True
        if kind.startswith(("video/", "audio/", "multipart/")):
            return False
        begin = b""
        for chunk in _chunks(response):
            begin += chunk
            if len(begin) >= MAX_START:
                break
    # Pictures without a codec are the server's to refuse.
    if begins_like_a_picture(begin) or re.match(r"an? .*picture", describe(begin, len(begin))):
        return True
    if kind in ("text/html", "application/json", "text/xml"):
        raise SourceError(f"found {kind}, expected a picture or a video")
    return False


def _read(url: str, max_bytes: int) -> bytes:
    content = bytearray()
    with _get(url) as response:
        for chunk in _chunks(response):
            content += chunk
            if len(content) > max_bytes:
                raise SourceError(f"found more than {max_bytes} bytes, no picture is so large")
    return bytes(content)


@contextmanager
def _get(url: str) -> Iterator[requests.Response]:
    import requests
    import urllib3

    try:
        with requests.get(url, stream=True, timeout=SILENCE_S) as response:
            if not response.ok:
                raise SourceError(f"the web server answered {response.status_code} {response.reason}")
            yield response
    except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
        raise SourceError(f"cannot be read: {_reason(error)}") from error


def _chunks(response: requests.Response) -> Iterator[bytes]:
    # `iter_content` would wait for whole chunks.
    while chunk := response.raw.read1(CHUNK, decode_content=True):
        yield chunk


def _within_deadline(work: Callable[[], T]) -> T:
    """Does it on a thread that is given up in time: headers that trickle in are never silent for long."""
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="download", daemon=True).start()
    try:
        return done.result(DEADLINE_S)
    except TimeoutError:
        raise SourceError(f"not complete after {DEADLINE_S:g} s") from None


def _reason(error: BaseException) -> str:
    """The innermost reason: what is around it repeats the address, password included."""
    from urllib3.exceptions import DecodeError

    # A ValueError is about some digits.
    while (inner := error.__cause__ or error.__context__) and not isinstance(inner, ValueError):
        if isinstance(error, DecodeError):
            return str(error.args[0])
        error = inner
    if isinstance(error, TimeoutError):
        return f"no answer within {SILENCE_S:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
