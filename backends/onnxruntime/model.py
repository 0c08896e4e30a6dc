"""A stand-in for Triton's native `onnxruntime` backend, for servers that have none; CPU only.

It reads the same layout (`1/model.onnx`, or the configuration's `default_model_filename`) and the parameters
`intra_op_thread_count`, `inter_op_thread_count` and ONNX Runtime's own `session.*`. Each instance has a
session of its own.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import triton_python_backend_utils as pb_utils

TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
}


class TritonPythonModel:
    """Runs the requests that the server has batched as one batch."""

    @staticmethod
    def auto_complete_config(auto_complete_model_config: Any) -> Any:
        """Fills in the inputs and outputs that the configuration leaves out."""
        config = auto_complete_model_config.as_dict()
        session = _session(config, optimize=False)
        batched = config["max_batch_size"] > 0
        for tensors, add in (
            (session.get_inputs(), auto_complete_model_config.add_input),
            (session.get_outputs(), auto_complete_model_config.add_output),
        ):
            for tensor in tensors:
                add(_describe(tensor, batched=batched))
        return auto_complete_model_config

    def initialize(self, args: dict[str, str]) -> None:
        """Loads the model and runs it once: what the first run allocates, no client waits for."""
        config = json.loads(args["model_config"])
        self.session = _session(config)
        self.inputs = [tensor["name"] for tensor in config["input"]]
        self.batched = config["max_batch_size"] > 0
        if all(int(size) > 0 for tensor in config["input"] for size in tensor["dims"]):
            zeros = {
                tensor["name"]: np.zeros(
                    [1] * self.batched + [int(size) for size in tensor["dims"]],
                    pb_utils.triton_string_to_numpy(tensor["data_type"]),
                )
                for tensor in config["input"]
            }
            self.session.run(None, zeros)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answers each request with its rows of the one batch that all make."""
        if not self.batched:
            return [self._run([request])[0] for request in requests]
        return self._run(requests)

    def _run(self, requests: list[Any]) -> list[Any]:
        columns = {
            name: [pb_utils.get_input_tensor_by_name(request, name).as_numpy() for request in requests]
            for name in self.inputs
        }
        feed = {name: c[0] if len(c) == 1 else np.concatenate(c) for name, c in columns.items()}
        names = sorted({name for request in requests for name in request.requested_output_names()})
        try:
            outputs = self.session.run(names, feed)
        except Exception as error:
            failure = pb_utils.TritonError(f"ONNX Runtime: {error}", pb_utils.TritonError.INTERNAL)
            return [pb_utils.InferenceResponse(error=failure) for _ in requests]
        if len(requests) == 1:
            return [_response(names, outputs)]
        ends = np.cumsum([len(tensor) for tensor in columns[self.inputs[0]]])[:-1]
        rows = zip(*(np.split(output, ends) for output in outputs), strict=True)
        return [_response(names, arrays) for arrays in rows]


def _response(names: list[str], arrays: Iterable[np.ndarray]) -> Any:
    tensors = zip(names, arrays, strict=True)
    return pb_utils.InferenceResponse([pb_utils.Tensor(name, np.ascontiguousarray(a)) for name, a in tensors])


def _session(config: dict[str, Any], *, optimize: bool = True) -> onnxruntime.InferenceSession:
    path = Path(pb_utils.get_model_dir()) / (config.get("default_model_filename") or "model.onnx")
    if not path.is_file():
        raise pb_utils.TritonModelException(
            f"no {path}: make it first, for example python -m export.to_onnx CHECKPOINT {path}"
        )
    options = onnxruntime.SessionOptions()
    parameters = {key: value["string_value"] for key, value in (config.get("parameters") or {}).items()}
    options.intra_op_num_threads = int(parameters.get("intra_op_thread_count", 0))
    options.inter_op_num_threads = int(parameters.get("inter_op_thread_count", 0))
    for key, value in parameters.items():
        if key.startswith("session."):
            options.add_session_config_entry(key, value)
    if not optimize:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _describe(tensor: Any, *, batched: bool) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    if batched and (not shape or shape[0] != -1):
        raise pb_utils.TritonModelException(
            f"tensor {tensor.name} has the shape {tensor.shape}, expected a dynamic first dimension: "
            "export with a dynamic batch or set max_batch_size to 0"
        )
    if tensor.type not in TYPES:
        raise pb_utils.TritonModelException(
            f"tensor {tensor.name} is a {tensor.type}, expected one of {list(TYPES)}"
        )
    return {"name": tensor.name, "data_type": TYPES[tensor.type], "dims": shape[batched:]}
