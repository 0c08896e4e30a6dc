"""One way to ask a server over either protocol."""

from collections.abc import Mapping, Sequence

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import np_to_triton_dtype

PROTOCOLS = ("grpc", "http")
INVALID = {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}
"""The status of a request that is wrong, as tritonclient's exceptions give it."""


def images(pictures: Sequence[bytes]) -> dict[str, np.ndarray]:
    """The input of `centernet` for encoded pictures."""
    return {"image": np.array(pictures, object).reshape(-1, 1)}


def infer(
    server,
    protocol: str,
    model: str,
    inputs: Mapping[str, np.ndarray],
    parameters: Mapping[str, object] | None = None,
    **options,
) -> dict[str, np.ndarray]:
    """Sends one request and returns all outputs.

    Raises:
        InferenceServerException: The server answered with an error.
    """
    module = {"grpc": grpc, "http": http}[protocol]
    with module.InferenceServerClient(getattr(server, f"{protocol}_url")) as client:
        tensors = []
        for name, array in inputs.items():
            tensor = module.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
            tensor.set_data_from_numpy(array)
            tensors.append(tensor)
        result = client.infer(model, tensors, parameters=parameters and dict(parameters), **options)
        response = result.get_response()
        outputs = response["outputs"] if protocol == "http" else response.outputs
        names = [output["name"] if protocol == "http" else output.name for output in outputs]
        return {name: result.as_numpy(name) for name in names}
