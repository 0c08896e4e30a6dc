"""Whether the server wants requests, as its Python models tell Triton 26.03 and later."""

import os
from pathlib import Path


def is_ready() -> bool:
    """False while the file that the environment variable DRAINING names is there.

    Triton asks in a thread of the model's process, and takes no answer within 5 s, or no process, as no.
    """
    return not os.environ.get("DRAINING") or not Path(os.environ["DRAINING"]).exists()
