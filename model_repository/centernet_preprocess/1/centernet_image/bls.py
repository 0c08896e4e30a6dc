"""A Python model asks another model of the server: Triton's business logic scripting.

Only there can this be imported: `triton_python_backend_utils` is the backend's.
"""

import signal
from collections.abc import Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

BUSY_OR_AWAY = (
    *("maximum queue size", "timeout expired"),
    *("Server not ready", "Server is stopping", "is not ready", "ready state", "no available versions"),
)
"""In what a model says that may answer later, or on another server."""

EXIT_S = 3
"""Far longer than a process takes to end once nothing is left to do."""


class FailedError(Exception):
    """What another model answered in place of tensors.

    Triton's Python backend gives its words, but not its status (24.10).
    """

    @property
    def code(self) -> Any:
        """The status that the words are of."""
        text = str(self)
        if "image: " in text:
            return pb_utils.TritonError.INVALID_ARG
        again = any(words in text for words in BUSY_OR_AWAY)
        return pb_utils.TritonError.UNAVAILABLE if again else pb_utils.TritonError.INTERNAL


def ask(model: str, inputs: Sequence[Any], outputs: Sequence[str]) -> list[np.ndarray]:
    """What another model makes of inputs.

    Args:
        model: Its name.
        inputs: `pb_utils.Tensor`s, with the batch.
        outputs: Names of those that are wanted.

    Returns:
        The outputs, in their order, in the host's memory.

    Raises:
        FailedError: It answered an error.
    """
    return _tensors(_request(model, inputs, outputs).exec(), outputs)


async def async_ask(model: str, inputs: Sequence[Any], outputs: Sequence[str]) -> list[np.ndarray]:
    """The same as `ask`, while others go on."""
    return _tensors(await _request(model, inputs, outputs).async_exec(), outputs)


def _request(model: str, inputs: Sequence[Any], outputs: Sequence[str]) -> Any:
    host = pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0)
    return pb_utils.InferenceRequest(
        model_name=model, inputs=inputs, requested_output_names=outputs, preferred_memory=host
    )


def _tensors(response: Any, outputs: Sequence[str]) -> list[np.ndarray]:
    if response.has_error():
        raise FailedError(response.error().message())
    return [pb_utils.get_output_tensor_by_name(response, name).as_numpy() for name in outputs]


def end_soon() -> None:
    """Ends this process before long, whatever it still waits for: the last that `finalize` does.

    Triton 24.10's own threads for requests between models sometimes never end, and the server waits for them.
    """
    signal.alarm(EXIT_S)
