"""One codec for each format."""

from centernet_image.codecs import bmp, gif, jpeg, png, pnm, tiff, webp
from centernet_image.codecs.common import Codec

CODECS: dict[str, Codec] = {
    "JPEG": jpeg.read,
    "PNG": png.read,
    "WEBP": webp.read,
    "BMP": bmp.read,
    "TIFF": tiff.read,
    "PPM": pnm.read,
    "GIF": gif.read,
}
"""PPM stands for PBM, PGM and PPM."""

FORMATS = tuple(CODECS)
