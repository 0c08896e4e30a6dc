"""Clients of the CenterNet ensembles: `from clients import CenterNetClient`."""

from clients.client import Answer, AsyncCenterNetClient, CenterNetClient, Picture
from clients.detections import Detections
from clients.errors import (
    CenterNetError,
    DeadlineError,
    RejectedError,
    SharedMemoryError,
    SourceError,
    UnavailableError,
)
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
    "RejectedError",
    "RetryPolicy",
    "SharedMemoryError",
    "SourceError",
    "Tls",
    "UnavailableError",
]
