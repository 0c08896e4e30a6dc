"""Which pictures the GPU takes: the headers decide, without a GPU."""

import io

import pytest
from centernet_preprocessing.gpu.jpeg import parse
from pictures import encode, picture
from PIL import ExifTags, Image


def jpeg(mode="RGB", **options):
    stream = io.BytesIO()
    image = Image.fromarray(picture(60, 90)[..., ::-1])
    if "orientation" in options:
        exif = options["exif"] = Image.Exif()
        exif[ExifTags.Base.Make] = "camera"
        exif[ExifTags.Base.Orientation] = options.pop("orientation")
    image.convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "options", [{"subsampling": i} for i in range(3)] + [{"orientation": 1}, {"mode": "L"}]
)
def test_plain(options):
    assert parse(jpeg(**options)).size == (60, 90)


def test_comments_and_other_segments_change_nothing():
    data = jpeg(comment=b"x" * 1000)
    assert parse(data).size == (60, 90)
    app2 = b"\xff\xe2\x00\x06ICC_"
    assert parse(data[:2] + app2 + data[2:]).size == (60, 90)


@pytest.mark.parametrize(
    "data",
    [
        jpeg(progressive=True),
        jpeg("CMYK"),
        jpeg(keep_rgb=True),
        *(jpeg(orientation=i) for i in range(2, 9)),
        jpeg() + b"x",
        jpeg()[:-2],
        jpeg()[:300],
        encode(picture(60, 90), "PNG"),
        b"",
        b"\xff\xd8\xff\xd9",
        b"\xff\xd8" * 100 + b"\xff\xd9",
    ],
)
def test_the_cpus(data):
    assert parse(data) is None


def test_damaged_headers_are_the_cpus():
    """No byte of a header, whatever becomes of it, makes this raise or name another size."""
    data = jpeg(orientation=1)
    for position in range(2, data.index(b"\xff\xda") + 14):
        for value in (0, 1, 0x7F, 0xFF):
            damaged = data[:position] + bytes([value]) + data[position + 1 :]
            found = parse(damaged)
            assert found is None or len(found.size) == 2
