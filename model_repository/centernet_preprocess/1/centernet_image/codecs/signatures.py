"""Formats by their first bytes: those that have a codec, and names for what people send instead."""

import re

_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM", "BMP"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"P[1-6][ \t\r\n\v\f#]", "PPM"),
    (rb"GIF8[79]a", "GIF"),
)
_OTHERS = (
    (rb"....ftyp(avif|avis)", "an AVIF picture"),
    (rb"....ftyp(hei[cxms]|hev[cxms]|mif[12]|msf1)", "a HEIC picture"),
    (rb"....ftypcrx ", "a CR3 raw picture"),
    (rb"....ftyp", "an MP4 or QuickTime video"),
    (rb"\xff\x0a|\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture"),
    (rb"II\xbc", "a JPEG XR picture"),
    (rb"P7\s", "a PAM picture"),
    (rb"P[fF]\s", "a PFM picture of floating-point samples"),
    (rb"\0\0[\1\2]\0[^\0]", "an icon"),
    (rb".(\0[\2\3\n\x0b]\0{5}.{8}[\x08\x0f\x10\x18 ]|\x01[\1\t].{13}\x08)[\0- ]", "a TGA picture"),
    (rb"8BPS", "a Photoshop file"),
    (rb"v/1\x01", "an OpenEXR picture"),
    (rb"qoif", "a QOI picture"),
    (rb"%PDF-", "a PDF file"),
    (rb"%!PS", "a PostScript file"),
    (rb"RIFF....AVI ", "an AVI video"),
    (rb"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (rb"PK\x03\x04", "a ZIP archive"),
    (rb"\x1f\x8b", "a gzip file"),
    (rb"\x93NUMPY", "a NumPy array"),
    (rb"version https://git-lfs", "a Git LFS pointer"),
    (rb"(?i:https?|s3|gs|file)://", "a URL"),
    (rb"(?i:data:)", "a data URI without base64"),
    (rb"(?i:<!doctype html|<html|<head|<body)", "an HTML page"),
    (rb"(?s:(<\?xml|<!--|<!DOCTYPE svg).{0,2000})?<svg", "an SVG drawing"),
    (rb"<\?xml", "an XML file"),
    (rb"[\[{]\s*[\"{\[\]}\d]", "JSON"),
)


MAX_START = 4096
"""Bytes that say what the data are: white space may be in front of text."""

_TEXT_START = re.compile(rb"(?:\xef\xbb\xbf)?\s*")


def format_of(data: bytes) -> str | None:
    """The format that the data begin like, if it has a codec."""
    return _first(_SIGNATURES, data, 0)


def describe(start: bytes, size: int) -> str:
    """What data of none of the formats are, by their first `MAX_START` bytes, for an error's text."""
    text = _TEXT_START.match(start)
    name = _first(_OTHERS, start, 0) or _first(_OTHERS, start, text.end() if text else 0)
    return name or f"{size} bytes beginning {start[:8]!r}"


def _first(rules: tuple[tuple[bytes, str], ...], data: bytes, start: int) -> str | None:
    return next((name for pattern, name in rules if re.compile(pattern, re.DOTALL).match(data, start)), None)
