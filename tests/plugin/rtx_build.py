"""Builds engines with TensorRT-RTX, in a process of its own: rtx_build.py PLUGIN < jobs.json > results.json.

A job has "onnx" (path), "target" ("SM86"), and perhaps "profile" ({input: [min, opt, max]}), "channels_last"
(inputs and outputs). A result has "engine" (bytes, 0 where TensorRT refused), "output" (its shape) and "log"
(lines).
"""

import ctypes
import json
import sys
from pathlib import Path

import tensorrt_rtx_bindings as trt

HALVES = (trt.DataType.HALF, trt.DataType.BF16)


class Log(trt.ILogger):
    def __init__(self):
        super().__init__()
        self.lines = []

    def log(self, severity, message):
        if severity != trt.ILogger.VERBOSE:
            self.lines.append(message)


def build(log, job):
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(Path(job["onnx"]).read_bytes()):
        return {"engine": 0}
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.__members__[job["target"]], 0)
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in job.get("profile", {}).items():
        profile.set_shape(name, smallest, usual, largest)
    config.add_optimization_profile(profile)
    tensors = [network.get_input(i) for i in range(network.num_inputs)] + [network.get_output(0)]
    for tensor in tensors:
        if tensor.name in job.get("channels_last", []):
            layout = trt.TensorFormat.HWC8 if tensor.dtype in HALVES else trt.TensorFormat.HWC
            tensor.allowed_formats = 1 << int(layout)
    engine = builder.build_serialized_network(network, config)
    return {
        "engine": 0 if engine is None else engine.nbytes,
        "output": list(network.get_output(0).shape),
    }


def main():
    ctypes.CDLL(sys.argv[1])
    results = []
    for job in json.load(sys.stdin):
        log = Log()
        results.append(build(log, job) | {"log": log.lines})
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
