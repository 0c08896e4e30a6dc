"""The kernel that checks JPEGs' scans, on the CPU: it vouches for whole ones, and for no other."""

import numpy as np
import pytest
from centernet_preprocessing.gpu.jpeg import is_whole, parse
from centernet_preprocessing.gpu.packing import PART_BYTES
from pictures import picture
from scans import damages, host_kernel, jpeg, scan_start, textured

SAMPLINGS = (
    {"subsampling": 0},
    {"subsampling": 1},
    {"subsampling": 2},
    {"subsampling": "4:4:0"},
    {"grey": True},
)
THREADS = 64


@pytest.fixture(scope="module")
def kernel():
    return host_kernel()


def encoded(image, *, subsampling=2, grey=False, **options):
    if grey:
        return jpeg(image[..., 1].copy(), **options)
    if subsampling == "4:4:0":
        return jpeg_440(image, **options)
    return jpeg(image, subsampling=subsampling, **options)


def jpeg_440(image, **options):
    """What 4:2:2 is to a picture on its side: the same blocks under another name."""
    data = jpeg(image.transpose(1, 0, 2).copy(), subsampling=1, **options)
    frame = data.index(b"\xff\xc0")
    sides = data[frame + 7 : frame + 9] + data[frame + 5 : frame + 7]
    return data[: frame + 5] + sides + data[frame + 9 : frame + 11] + b"\x12" + data[frame + 12 :]


def assert_vouched(kernel, pictures, threads=THREADS):
    assert all(map(is_whole, pictures))
    assert kernel.vouches(pictures, threads) == [True] * len(pictures)


def assert_no_word_against_libjpeg(kernel, pictures):
    """Returns how many pictures libjpeg-turbo refuses though their headers are in order."""
    vouched = kernel.vouches(pictures)
    whole = [is_whole(data) for data in pictures]
    assert [i for i, (v, w) in enumerate(zip(vouched, whole, strict=True)) if v and not w] == []
    asked = [bool((found := parse(data)) and found.scan) for data in pictures]
    return sum(a and not w for a, w in zip(asked, whole, strict=True))


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_whole_pictures(kernel, sampling):
    images = [
        textured(*size, seed=i)
        for i, size in enumerate([(1, 1), (8, 8), (16, 16), (17, 15), (9, 300), (300, 9), (121, 203)])
    ]
    options = [{"quality": q, "optimize": q % 2 == 0} for q in (1, 2, 10, 35, 50, 76, 90, 95, 99, 100)]
    assert_vouched(kernel, [encoded(image, **sampling, **more) for image in images for more in options])


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("level", [0, 128, 255])
def test_pictures_of_one_colour(kernel, sampling, level):
    """A decoder that starts out of step in them stays so."""
    image = np.full((960, 1280, 3), level, np.uint8)
    assert_vouched(kernel, [encoded(image, **sampling), encoded(image[:133, :211], **sampling)])


def test_smooth_pictures(kernel):
    assert_vouched(kernel, [encoded(picture(480, 640), quality=q) for q in (10, 50, 75, 90, 100)])


def test_lengths_around_those_of_parts_and_threads(kernel):
    """Every remainder of bytes, and parts one less, as many, and one more than threads."""
    pictures = [encoded(textured(40, 8 * n, seed=n), quality=60 + n % 40) for n in range(1, 160)]
    lengths = [len(data) - 2 - scan_start(data) for data in pictures]
    assert {length % 4 for length in lengths} == set(range(4))
    assert {0, 1, 2, 3, PART_BYTES - 1} & {length % PART_BYTES for length in lengths}
    assert_vouched(kernel, pictures)
    parts = -(-lengths[-1] // PART_BYTES)
    for threads in (parts - 1, parts, parts + 1, 1):
        assert_vouched(kernel, pictures[-1:], threads)


def test_twelve_megapixels_of_a_full_block(kernel):
    image = np.tile(textured(300, 400), (10, 10, 1))
    assert_vouched(kernel, [encoded(image, quality=90)], threads=1024)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_damaged_pictures(kernel, sampling):
    refused = 0
    for seed in range(12):
        random = np.random.default_rng(seed)
        size = random.integers(1, 120, 2)
        data = encoded(textured(*size, seed=seed), **sampling, quality=int(random.integers(30, 100)))
        refused += assert_no_word_against_libjpeg(kernel, list(damages(data, random)))
    assert refused > 150


def test_bytes_too_many(kernel):
    """Where a part begins behind the last block, too: its bits must not pass for that block's."""
    random = np.random.default_rng(0)
    refused = 0
    for seed in range(150):
        data = encoded(textured(40, 48, seed=seed), quality=50 + seed % 50)
        missing = (1 - (len(data) - 2 - scan_start(data))) % PART_BYTES
        extra = random.bytes(missing % 20 or 20).replace(b"\xff", b"\xfe")
        refused += assert_no_word_against_libjpeg(kernel, [data[:-2] + extra + b"\xff\xd9"])
    assert refused > 50


def test_a_code_that_does_not_exist(kernel):
    """Where it hides best: it ends the last block, and nothing is left over."""
    data = jpeg(np.full((8, 8), 128, np.uint8))
    codes = b"\x3f\xff\x00\xff\x00"  # No change of brightness, and sixteen ones.
    damaged = data[: scan_start(data)] + codes + b"\xff\xd9"
    assert assert_no_word_against_libjpeg(kernel, [damaged]) == 1


# Codes 0 for no change of brightness, 00 and 01 for a value of one and the end of a block.
TABLES = b"\xff\xc4\0\x27" + b"\x00\1" + bytes(15) + b"\0" + b"\x10\0\2" + bytes(14) + b"\1\0"


def flat(height, width, *, channels=1, tables=TABLES):
    """A picture without its end: a third of a byte for each of its blocks."""
    data = jpeg(np.full((8, 8, 3)[: 1 + channels], 128, np.uint8), subsampling=0)
    start, header, frame = scan_start(data), data.rindex(b"\xff\xda"), data.index(b"\xff\xc0")
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    selectors = b"".join(bytes([i + 1, 0]) for i in range(channels))
    bits = "001" * (-(-height // 8) * -(-width // 8) * channels)
    bits += "1" * (-len(bits) % 8)
    codes = int(bits, 2).to_bytes(len(bits) // 8, "big")
    before = data[: frame + 5] + sides + data[frame + 9 : header] + tables
    return before + data[header : header + 5] + selectors + data[start - 3 : start] + codes


def test_padding_that_looks_like_a_part(kernel):
    """A scan of as many bytes as a part has, the last of them FF, and the zero behind it."""
    data = flat(8, 8 * ((8 * PART_BYTES - 7) // 3))
    assert_vouched(kernel, [data + b"\x00\xff\xd9"])
    # Without that zero, FF is no data: the last bit is missing.
    assert assert_no_word_against_libjpeg(kernel, [data + b"\xff\xd9"]) == 0


def test_blocks_that_all_use_the_same_tables(kernel):
    """Nothing in them says which of an MCU's blocks they are."""
    assert_vouched(kernel, [flat(1200, 1200, channels=3) + b"\xff\xd9"])


def test_what_libjpeg_refuses_beside_a_whole_scan(kernel):
    assert_vouched(kernel, [flat(16, 16) + b"\xff\xd9"])
    all_ones = b"\xff\xc4\0\x15" + b"\x00\2" + bytes(15) + b"\0\1"
    too_many = b"\xff\xc4\1\x14" + b"\x11" + bytes(14) + b"\2\xff" + bytes(257)
    refused = [
        flat(65504, 8),
        flat(16, 16, tables=TABLES + all_ones),
        flat(16, 16, tables=TABLES + too_many),
    ]
    assert_no_word_against_libjpeg(kernel, [data + b"\xff\xd9" for data in refused])


def test_a_lone_components_sampling_changes_nothing(kernel):
    data = jpeg(textured(50, 70)[..., 0].copy())
    sampling = data.index(b"\xff\xc0") + 11
    assert_vouched(kernel, [data[:sampling] + b"\x22" + data[sampling + 1 :]])


def test_three_pairs_of_tables_are_libjpegs(kernel):
    data = jpeg(textured(50, 70))
    last = scan_start(data) - 4
    assert kernel.vouches([data[:last] + b"\x01" + data[last + 1 :]]) == [False]
    assert parse(data[:last] + b"\x01" + data[last + 1 :]).scan is None


def test_without_enough_passes_nothing_is_vouched_for(kernel):
    """Though what the last pass read is right, as often as not: only another one would tell."""
    pictures = [encoded(textured(120, 160, seed=seed)) for seed in range(40)]
    assert_vouched(kernel, pictures)
    assert sum(host_kernel(max_passes=1).vouches(pictures)) < 5


def test_most_parts_are_in_step_at_once(kernel):
    pictures = [encoded(textured(120, 160, seed=seed), subsampling=0) for seed in range(20)]
    assert sum(host_kernel(max_passes=1).vouches(pictures)) > 15


def with_segments():
    """JPEGs that applications wrote more into: JFIF and a profile; Adobe's marker; 16 bits of quantiser."""
    image = textured(20, 30)
    jfif = jpeg(image, icc_profile=b"profile" * 4)
    plain = jpeg(image, quality=50)
    after_jfif = 4 + int.from_bytes(plain[4:6], "big")
    adobe = b"\xff\xee\x00\x0eAdobe\0\x64\0\0\0\0\1"
    table = plain.index(b"\xff\xdb")
    wide = b"\xff\xdb\0\x83\x10" + b"".join(bytes([0, value]) for value in plain[table + 5 : table + 69])
    return [jfif, plain[:2] + adobe + plain[after_jfif:], plain[:table] + wide + plain[table + 69 :]]


@pytest.mark.parametrize("data", with_segments())
def test_damaged_headers(kernel, data):
    assert_vouched(kernel, [data])
    damaged = [
        data[:position] + bytes([value]) + data[position + 1 :]
        for position in range(2, scan_start(data))
        for value in {0, 1, 2, 4, 17, 255, data[position] ^ 1, data[position] ^ 16, data[position] - 1 & 255}
    ]
    assert_no_word_against_libjpeg(kernel, damaged)


def test_segments_that_libjpeg_complains_of(kernel):
    data = jpeg(textured(20, 30))
    before = [
        b"\xff\xe0\x00\x10JFIF\0\2\1\0\0\1\0\1\0\0",
        b"\xff\xe2\x00\x12ICC_PROFILE\0\1\2xx",
        b"\xff\xe2\x00\x10ICC_PROFILE\0\1\1",
        b"\xff\xdd\x00\x04\0\1",
        b"\xff\xdd\x00\x06\0\0\0\0",
        b"\xff\xdb\x00\x43\x04" + bytes(64),
        b"\xff\xdb\x00\x03\x00",
        b"\xff\xc4\x00\x13\x02" + bytes(16) + b"\xff\xff\xff\xff",
        b"\xff\xc4\x00\x14\x02" + b"\0" * 17,
        b"\xff\xc4\x00\x13\x14" + bytes(16),
    ]
    pictures = [data[:2] + segment + data[2:] for segment in before]
    assert_no_word_against_libjpeg(kernel, pictures)
    assert kernel.vouches(pictures) == [False] * len(pictures)
