"""What can go wrong between a picture and its detections; every message is one line."""


class CenterNetError(Exception):
    """Base of all errors of this package."""

    def __init__(self, message: str) -> None:
        """Keeps `message` as one line, whatever the server wrote."""
        super().__init__(" ".join(message.split()))


class MisuseError(CenterNetError):
    """What the command line asks for cannot be; nothing was touched."""

    exit_code = 2


class UnavailableError(CenterNetError):
    """No server answers, its model is not ready, or its queue is full: later may be better."""


class DeadlineError(CenterNetError):
    """No answer in time, retries included: the server is too slow, or its machine has vanished."""


class RejectedError(CenterNetError):
    """The server answered that it cannot serve this request: a broken picture, a wrong parameter."""


class PictureError(CenterNetError, TypeError, ValueError):
    """What a program gave as a picture is none, or one that could mean several things."""


class SharedMemoryError(CenterNetError):
    """A shared memory region cannot be made, or the server cannot open it."""


class SourceError(CenterNetError):
    """A picture, folder, video or camera cannot be read."""


class OutputError(CenterNetError):
    """The results cannot be written: there is no use in going on."""
