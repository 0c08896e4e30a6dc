"""What a Python model answers where a picture is wrong.

Only there can this be imported: `triton_python_backend_utils` is the backend's.
"""

from collections.abc import Sequence
from typing import Any

import triton_python_backend_utils as pb_utils

from centernet_image.codecs.common import ImageError


def first_error(outcomes: Sequence[Any]) -> Any | None:
    """The `TritonError` of a request: of the first exception among what became of its pictures, if any."""
    for index, error in enumerate(outcomes):
        if isinstance(error, Exception):
            known = isinstance(error, ImageError)
            where = f"image {index} of {len(outcomes)} (counted from 0)" if len(outcomes) > 1 else "image"
            code = pb_utils.TritonError.INVALID_ARG if known else pb_utils.TritonError.INTERNAL
            return pb_utils.TritonError(f"{where}: {error if known else repr(error)}", code)
    return None
