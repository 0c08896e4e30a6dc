"""What people and attackers send is refused for what it is, at once, and never ends the process."""

import base64
import tracemalloc
import zlib

import fuzz_pictures
import hostile_pictures
import numpy as np
import pytest
from centernet_image.codecs import common, gif, jpeg, webp
from centernet_image.codecs import png as png_codec
from centernet_image.codecs import tiff as tiff_codec
from centernet_image.codecs.common import ImageError
from centernet_image.decode import decode
from pictures import encode
from seed_pictures import HEIGHT, WIDTH, png, seeds, tiff

BIG = hostile_pictures.photograph(200, 240)
SMALL = hostile_pictures.photograph(50, 60)
DAMAGE = "damaged or truncated"
REFUSALS = {
    "JPEG of 1000 scans": "more than 10 scans",
    "JPEG without its end": DAMAGE,
    "JPEG without pixels": "2 bytes are too few for",
    "JPEG of comments": "more than 4096 segments",
    "JPEG of tables": "more than 4096 segments",
    "PNG of too many pixels": "limit max_pixels is",
    "PNG with a chunk of 2 GiB": "a chunk claims 2147483647 bytes",
    "PNG of chunks": "more than 65536 chunks",
    "PNG without pixels": "its pixels need 3001000 bytes, 0 are there",
    "PNG without its last row": "its pixels need 3001000 bytes, 2998001 are there",
    "GIF of blocks": "more than 262144 blocks",
    "WEBP of chunks": "more than 65536 chunks",
    "TIFF of strips in one place": "its parts overlap",
    "TIFF of a tile of 2 gigapixels": "tiles of 45000x45000 pixels",
    "TIFF of tiles of a pixel": "tiles of 1x1 pixels",
    "TIFF of a bomb": "a part of 1000000 bytes decompresses to",
    "TIFF of bits": "too few bytes for its pixels",
    "TIFF LZW without pixels": "too few bytes for its pixels",
    "TIFF PackBits without pixels": "too few bytes for its pixels",
    "TIFF of 60000 tags": "0x0 pixels",
    "BMP run lengths without pixels": "2 bytes of run lengths are too few for 1000000 pixels",
    "BMP without pixels": "need 3000000 bytes, 946 are there",
    "PPM without pixels": "need 3000000 bytes",
    "PPM text without pixels": "need 5999999 bytes",
    "PPM of spaces": "no width and height",
    "PPM of comments": "more than 4096 comments",
    "base64 of nothing": "found 225000 bytes beginning",
}
OTHERS = {
    "an AVIF picture": b"\0\0\0\x1cftypavif",
    "a HEIC picture": b"\0\0\0\x18ftypheic",
    "a CR3 raw picture": b"\0\0\0\x18ftypcrx ",
    "an MP4 or QuickTime video": b"\0\0\0\x20ftypisom",
    "a JPEG XL picture": b"\xff\x0a\xfa\x7f",
    "a JPEG 2000 picture": b"\0\0\0\x0cjP  \r\n\x87\n",
    "a PAM picture": b"P7\nWIDTH 8",
    "a PFM picture of floating-point samples": b"PF\n8 8\n-1.0\n",
    "an icon": b"\0\0\1\0\1\0",
    "a TGA picture": encode(SMALL, "TGA"),
    "a PDF file": b"%PDF-1.7",
    "an HTML page": b"\n <!DOCTYPE HTML><html></html>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<!-- a logo -->\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "JSON": b'{"image": 1}',
    "a URL": b"https://example.org/a.jpg",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1",
    "a data URI without base64": b"data:image/svg+xml,%3Csvg%3E",
    "23 bytes beginning b'nothing '": b"nothing that is a thing",
}


def without_the_middle(data, *, length=0.2):
    """Bytes are missing inside; the end is there."""
    start = int(len(data) * 0.5)
    return data[:start] + data[start + int(len(data) * length) :]


def zeros_in_the_middle(data, value=b"\0"):
    start = int(len(data) * 0.5)
    stop = start + len(data) // 5
    return data[:start] + value * (stop - start) + data[stop:]


def ones_in_the_middle(data):
    """As flash memory is when it has been erased."""
    return zeros_in_the_middle(data, b"\xff")


@pytest.fixture(scope="module")
def refused():
    return hostile_pictures.refused(1000, 300_000)


def test_every_hostile_picture_has_its_refusal(refused):
    assert refused.keys() == REFUSALS.keys()


@pytest.mark.parametrize("name", REFUSALS)
def test_hostile_pictures_are_refused_for_what_they_are(refused, name):
    with pytest.raises(ImageError, match=REFUSALS[name]):
        decode(refused[name])


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_cost_no_memory(refused, name):
    tracemalloc.start()
    try:
        with pytest.raises(ImageError):
            decode(refused[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * 2**20


def test_refusals_come_before_any_pixel(refused, monkeypatch):
    """What would decode is not reached: it is there that time and memory go."""

    def reached(*_args, **_options):
        raise AssertionError("decoded")

    monkeypatch.setattr(jpeg.simplejpeg, "decode_jpeg", reached)
    monkeypatch.setattr(gif.Image, "open", reached)
    monkeypatch.setattr("cv2.imdecode", reached)
    counted = {"PNG without pixels", "PNG without its last row", "TIFF of a bomb"}
    for name in counted:
        with pytest.raises(ImageError):
            decode(refused[name])
    monkeypatch.setattr(common.isal_zlib, "decompressobj", reached)
    for name in REFUSALS.keys() - counted:
        with pytest.raises(ImageError):
            decode(refused[name])


def test_a_scan_header_does_not_cost_a_copy(monkeypatch):
    """Some encoders leave the spectrum empty: it is filled in for all scans at once."""
    copies = []
    monkeypatch.setattr(jpeg, "_with_spectra", lambda data, ends: copies.append(len(ends)) or data)
    header = b"\xff\xc0\0\x11\x08\0\x40\0\x40\x03" + b"\1\x11\0\2\x11\0\3\x11\0"
    scans = b"".join(b"\xff\xda\0\x08\1" + bytes([component]) + bytes(4) for component in (1, 2, 3) * 10)
    with pytest.raises(ImageError):
        decode(b"\xff\xd8" + header + scans + bytes(100) + b"\xff\xd9")
    assert copies == [30]


@pytest.mark.parametrize(("name", "module"), [("PNG", png_codec), ("WEBP", webp)])
def test_one_orientation_is_read(monkeypatch, name, module):
    reads = []
    monkeypatch.setattr(module, "exif_orientation", lambda exif: reads.append(exif) or 6)
    data = encode(BIG, name, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0")
    kind = b"eXIf" if name == "PNG" else b"EXIF"
    at = data.index(kind)
    start, end = (at - 4, at + 18) if name == "PNG" else (at, at + 8 + 16)
    again = data[:end] + data[start:end] * 9 + data[end:]
    if name == "WEBP":
        again = again[:4] + (len(again) - 8).to_bytes(4, "little") + again[8:]
    assert decode(again).shape == (240, 200, 3)
    assert len(reads) == 1


def test_as_many_scans_as_encoders_write():
    assert decode(hostile_pictures.many_scans(64, 48, 9)).shape == (48, 64, 3)
    with pytest.raises(ImageError, match="more than 10 scans"):
        decode(hostile_pictures.many_scans(64, 48, 10))


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "PPM", "GIF"])
def test_pictures_with_bytes_missing_inside(name):
    with pytest.raises(ImageError, match=DAMAGE):
        decode(without_the_middle(encode(BIG, name)))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"restart_marker_blocks": 8}),
        ("PNG", {}),
        ("GIF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("TIFF", {"compression": "packbits"}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
    ],
)
@pytest.mark.parametrize("damage", [without_the_middle, zeros_in_the_middle, ones_in_the_middle])
def test_holes_in_what_is_compressed(name, options, damage):
    with pytest.raises(ImageError, match=DAMAGE):
        decode(damage(encode(BIG, name, **options)))


@pytest.mark.parametrize("options", [{"quality": 100, "method": 0}, {"lossless": True, "method": 0}])
@pytest.mark.parametrize("level", [0, 255])
def test_flat_areas_are_no_holes(options, level):
    picture = np.full((600, 800, 3), level, np.uint8)
    picture[:75] = np.random.default_rng(0).integers(0, 256, (75, 800, 3))
    data = encode(picture, "WEBP", **options)
    assert bytes(100) in data
    assert decode(data)[-1].tolist() == [[level] * 3] * 800


def deflated(pixels, **tags):
    """A TIFF of one strip, uint8 [height, width, samples], with more tags by their number."""
    strip = zlib.compress(pixels.tobytes())
    height, width, samples = pixels.shape
    entries = {256: [width], 257: [height], 258: [8] * samples, 259: [8], 262: [2], 273: [8], 277: [samples]}
    entries |= {278: [height], 279: [len(strip)]} | {int(tag[1:]): values for tag, values in tags.items()}
    return tiff({tag: (3, values) for tag, values in entries.items()}, strip)


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"t266": [2]}, "of reversed bits and Deflate"),
        ({"t317": [3]}, "of unusual predictor 3"),
        ({"t317": [2], "t262": [6]}, "of unusual predictor 2"),
        ({"t338": [0]}, DAMAGE),  # One more sample than there are.
        ({"t258": [8, 8]}, DAMAGE),
    ],
)
def test_tiff_tags_that_contradict_each_other(tags, message):
    assert decode(deflated(SMALL)).shape == SMALL.shape
    with pytest.raises(ImageError, match=message):
        decode(deflated(SMALL, **tags))


@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_lzw"])
@pytest.mark.parametrize("value", [b"\0", b"\xff", b"\x78", b"\x80"])
def test_a_hole_over_a_strip_is_seen_before_any_is_decompressed(monkeypatch, value, compression):
    data = encode(BIG, "TIFF", compression=compression, tiffinfo={278: 5})
    assert decode(data).shape == BIG.shape
    monkeypatch.setattr(common.isal_zlib, "decompressobj", None)
    monkeypatch.setattr(tiff_codec.Image, "open", None)
    with pytest.raises(ImageError, match="does not begin as its compression"):
        decode(zeros_in_the_middle(data, value))


@pytest.mark.parametrize("samples", [1, 3])
def test_a_tiff_is_held_against_its_checksum(samples):
    pixels = SMALL[..., :samples]
    color = {"t262": [2 if samples == 3 else 1]}
    data = bytearray(deflated(pixels, **color))
    assert decode(bytes(data)).shape == SMALL.shape
    size = len(zlib.compress(pixels.tobytes()))
    data[8 + size - 1] ^= 1
    for damaged in (bytes(data), deflated(pixels, t279=[size - 1], **color)):
        with pytest.raises(ImageError, match=DAMAGE):
            decode(damaged)


def test_a_jpeg_cannot_hide_its_size():
    """TEM has no content: what looks like it is a header that libjpeg reads."""
    data = encode(BIG, "JPEG")
    frame = data.index(b"\xff\xc0")
    huge = b"\xff\xc0\0\x11\x08\x7f\xff\x7f\xff" + data[frame + 9 : frame + 19]
    with pytest.raises(ImageError, match="32767x32767"):
        decode(data[:frame] + b"\xff\x01" + huge + data[frame:])


def test_a_webp_is_as_long_as_it_claims():
    data = seeds()["WEBP alpha"]  # Its last chunk is metadata.
    with pytest.raises(ImageError, match=f"it claims {len(data)} bytes, {len(data) - 3} are there"):
        decode(data[:-3])


def test_a_jpeg_with_a_hole_and_its_end_marker():
    data = encode(BIG, "JPEG")
    with pytest.raises(ImageError, match="premature end of data"):
        decode(data[: len(data) // 2] + b"\xff\xd9")


def test_damaged_animations():
    for data in (hostile_pictures.damaged_animation(), without_the_middle(seeds()["PNG animated"])):
        with pytest.raises(ImageError, match=DAMAGE):
            decode(data)
    # Damage to a later picture alone is found by its checksum.
    data = bytearray(seeds()["PNG animated"])
    data[data.rindex(b"fdAT") + 40] ^= 1
    with pytest.raises(ImageError, match="checksum"):
        decode(bytes(data))


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [
        ("PNG animated", png_codec, "opencv"),
        ("WEBP animated", webp, "opencv"),
        ("GIF animated", gif.Image, "open"),
    ],
)
def test_no_decoder_sees_animations_and_metadata(monkeypatch, name, module, function):
    """What may end it, a profile of gigabytes that is small as a file, comments without end."""
    seen = []
    original = getattr(module, function)

    def spy(data, *args, **options):
        seen.append(data if isinstance(data, bytes) else data.getvalue())
        return original(data, *args, **options)

    monkeypatch.setattr(module, function, spy)
    data = seeds()[name]
    if name == "PNG animated":
        profile = b"profile\0\0" + zlib.compress(bytes(2**24), 1)
        data = data[:33] + png(1, 1, (b"iCCP", profile))[33:-12] + data[33:]
    assert decode(data).shape == (HEIGHT, WIDTH, 3)
    for part in (b"acTL", b"fdAT", b"iCCP", b"ANMF", b"VP8X", b"\x21\xf9\x04"):
        assert part not in seen[0]


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_supported_picture_is_named(name):
    with pytest.raises(ImageError) as caught:
        decode(OTHERS[name])
    assert str(caught.value) == f"found {name}, expected one of JPEG, PNG, WEBP, BMP, TIFF, PPM, GIF"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            encode(BIG, "JPEG").replace(b"\xff\xc0\0\x11\x08", b"\xff\xc1\0\x11\x0c"),
            "JPEG picture of 12 bits",
        ),
        (encode(BIG, "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"), "a lossless JPEG picture"),
        (
            encode(BIG, "JPEG").replace(b"\xff\xc0\0\x11", b"\xff\xc9\0\x11"),
            "an arithmetic-coded JPEG picture",
        ),
        (encode(BIG, "TIFF", compression="jpeg"), "TIFF picture of JPEG compression, expected none, LZW"),
        (
            tiff(
                {
                    256: (3, [16]),
                    257: (3, [16]),
                    258: (3, [32]),
                    273: (4, [8]),
                    277: (3, [1]),
                    278: (3, [16]),
                    279: (4, [1024]),
                    339: (3, [3]),
                },
                bytes(1024),
            ),
            "TIFF picture of floating-point samples, expected unsigned integers",
        ),
    ],
)
def test_what_of_a_picture_is_not_supported(data, message):
    with pytest.raises(ImageError, match=message):
        decode(data)


def test_damaged_base64():
    text = base64.b64encode(encode(BIG, "JPEG"))
    for data in (text[:99] + b"!" + text[99:], b"data:image/jpeg;base64," + text[:-9] + b"=" + text[-9:]):
        with pytest.raises(ImageError, match="damaged base64 text"):
            decode(data)
    wrapped = b"\n".join(text[at : at + 76] for at in range(0, len(text), 76))
    np.testing.assert_array_equal(decode(wrapped), decode(encode(BIG, "JPEG")))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("apng-bad-filter.png", DAMAGE),
        ("jpeg-1000-scans.jpg", "more than 10 scans"),
        ("jpeg-half-lost-with-end-marker.jpg", "premature end of data"),
        ("png-idat-claims-2gib.png", "claims 2147483647 bytes"),
    ],
)
def test_cases_from_the_field(shared, case, message):
    with pytest.raises(ImageError, match=message):
        decode((shared / "cases" / case).read_bytes())


def test_a_case_of_ten_bits(shared):
    data = (shared / "cases/grey-maxval-1023.pgm").read_bytes()
    samples = np.frombuffer(data, ">u2", 64 * 96, len(b"P5 96 64 1023\n")).reshape(64, 96, 1)
    np.testing.assert_allclose(decode(data), np.broadcast_to(samples / 1023 * 255, (64, 96, 3)), atol=0.5)


def test_a_slice_of_the_mutations():
    """`ci/fuzz-pictures` runs as many as one likes."""
    accepted, failures = fuzz_pictures.run(0, 2500)
    assert not failures
    assert 250 < accepted < 1250


def test_a_death_is_named(monkeypatch):
    """Otherwise no failure of the fuzzer's could be seen."""
    monkeypatch.setenv("FUZZ_PICTURES_DIE_AT", "3")
    accepted, failures = fuzz_pictures.run(0, 6)
    assert failures == ["mutation 3: exit -6: "]
    assert accepted <= 5
