"""Clients of the CenterNet ensembles: `from clients import CenterNetClient`."""

from clients.blocking import CenterNetClient
from clients.client import Answer, AsyncCenterNetClient
from clients.detections import Detections
from clients.errors import (
    CenterNetError,
    DeadlineError,
    PictureError,
    RejectedError,
    SharedMemoryError,
    SourceError,
    UnavailableError,
)
from clients.pictures import Picture
from clients.retry import RetryPolicy
from clients.transport import Tls

__all__ = [
    "Answer",
    "AsyncCenterNetClient",
    "CenterNetClient",
    "CenterNetError",
    "DeadlineError",
    "Detections",
    "Picture",
    "PictureError",
    "RejectedError",
    "RetryPolicy",
    "SharedMemoryError",
    "SourceError",
    "Tls",
    "UnavailableError",
]
