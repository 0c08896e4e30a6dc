"""Pictures behind http(s) addresses."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from clients.errors import SourceError

if TYPE_CHECKING:
    import requests

SILENCE_S = 10.0
DEADLINE_S = 60.0
"""For a whole picture, however it trickles in."""

CHUNK = 2**16
SIGNATURES = (
    b"\xff\xd8\xff",  # JPEG
    b"\x89PNG\r\n\x1a\n",
    b"GIF8",
    b"BM",
    b"II*\0",  # TIFF
    b"MM\0*",
    *(b"P%d%c" % (kind, space) for kind in range(1, 7) for space in b"\n\r\t "),  # PBM, PGM, PPM
)
LONGEST_SIGNATURE = 12
BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1", b"hevc")


def is_picture(url: str) -> bool:
    """Whether a picture is behind an address, by what the server says and by how the content begins.

    Raises:
        SourceError: Nobody answers, or it is text.
    """
    with _get(url) as response:
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        if kind.startswith("image/"):
            return True
        if kind.startswith(("video/", "audio/", "multipart/")):
            return False
        begin = b""
        for chunk in _chunks(response):
            begin += chunk
            if len(begin) >= LONGEST_SIGNATURE:
                break
    if begin.startswith(SIGNATURES):
        return True
    if begin[:4] == b"RIFF" and begin[8:12] == b"WEBP":
        return True
    if begin[4:8] == b"ftyp" and begin[8:12] in BRANDS:
        return True
    if kind in ("text/html", "application/json", "text/xml"):
        raise SourceError(f"found {kind}, expected a picture or a video")
    return False


def read(url: str, *, max_bytes: int) -> bytes:
    """The picture behind an address, bounded in bytes and time.

    Raises:
        SourceError: It cannot be had.
    """
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
    end = time.monotonic() + DEADLINE_S
    # `iter_content` would wait for whole chunks.
    while chunk := response.raw.read1(CHUNK, decode_content=True):
        yield chunk
        if time.monotonic() > end:
            raise SourceError(f"not complete after {DEADLINE_S:g} s")


def _reason(error: BaseException) -> str:
    """The innermost reason: what is around it repeats the address, password included."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, TimeoutError):
        return f"no answer within {SILENCE_S:g} s"
    return getattr(error, "strerror", None) or type(error).__name__
