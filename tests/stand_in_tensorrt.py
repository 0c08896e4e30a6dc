"""As much of TensorRT as the benchmarks use, on the CPU: engines are ONNX models, run by ONNX Runtime."""

import ctypes
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import torch


class TensorRT:
    """In place of the module.

    Attributes:
        built: (network, configuration) of each engine.
        loads: Whether engines can be loaded.
    """

    __version__ = "10.6.0"
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32")
    TensorFormat = SimpleNamespace(HWC=5, HWC8=6)
    IProfiler = object

    class Logger:
        ERROR = 1

        def __init__(self, severity):
            pass

    def __init__(self):
        self.built = []
        self.loads = True
        self.Builder = lambda logger: Builder(self.built)
        self.OnnxParser = lambda network, logger: SimpleNamespace(parse=network.parse)
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=self._load)

    def _load(self, serialized):
        return Engine(self.built[int(serialized)][0]) if self.loads else None

    @staticmethod
    def init_libnvinfer_plugins(logger, namespace):
        pass

    @staticmethod
    def nptype(dtype):
        return dtype


class Builder:
    def __init__(self, built):
        self.built = built

    def create_network(self, flags):
        return Network()

    def create_builder_config(self):
        return Config()

    def create_optimization_profile(self):
        return SimpleNamespace(set_shape=lambda name, smallest, usual, largest: None)

    def build_serialized_network(self, network, config):
        self.built.append((network, config))
        return str(len(self.built) - 1).encode()


class Config:
    def __init__(self):
        self.flags = {"TF32"}
        self.profiles = []

    def clear_flag(self, flag):
        self.flags.remove(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class Network:
    def parse(self, serialized):
        self.model = onnx.load_from_string(serialized)
        self.inputs, self.outputs = (
            [SimpleNamespace(name=tensor.name, allowed_formats=0) for tensor in tensors]
            for tensors in (self.model.graph.input, self.model.graph.output)
        )
        return True

    def get_input(self, index):
        return self.inputs[index]

    def get_output(self, index):
        return self.outputs[index]


class Engine:
    def __init__(self, network):
        self.network = network
        self.tensors = {t.name: t for t in (*network.model.graph.input, *network.model.graph.output)}
        self.num_io_tensors = len(self.tensors)
        self.session = onnxruntime.InferenceSession(network.model.SerializeToString())

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].type.tensor_type.elem_type)

    def create_execution_context(self):
        return Context(self)


class Context:
    recording = None

    def __init__(self, engine):
        self.engine = engine
        self.shapes, self.addresses = {}, {}

    def set_optimization_profile_async(self, index, stream):
        pass

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        (batch,) = {shape[0] for shape in self.shapes.values()}
        dims = self.engine.tensors[name].type.tensor_type.shape.dim
        return (batch, *(dim.dim_value for dim in dims[1:]))

    def execute_async_v3(self, stream):
        if Context.recording is None:
            self.compute(self.addresses)
        else:
            # Like CUDA's, a graph knows addresses, and owns nothing.
            Context.recording.nodes.append((weakref.ref(self), dict(self.addresses)))
        return True

    def compute(self, addresses):
        network = self.engine.network
        last = {t.name for t in (*network.inputs, *network.outputs) if t.allowed_formats}
        feeds = {t.name: self._memory(t.name, addresses, t.name in last) for t in network.inputs}
        names = [t.name for t in network.outputs]
        for name, values in zip(names, self.engine.session.run(names, feeds), strict=True):
            self._memory(name, addresses, name in last)[...] = values

    def _memory(self, name, addresses, channels_last):
        shape, dtype = self.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
        if channels_last:
            batch, channels, height, width = shape
            shape = (batch, height, width, channels)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.frombuffer((ctypes.c_uint8 * size).from_address(addresses[name]), dtype).reshape(shape)
        return memory.transpose(0, 3, 1, 2) if channels_last else memory


class Graph:
    def __init__(self):
        self.nodes = []

    def replay(self):
        for reference, addresses in self.nodes:
            context = reference()
            assert context is not None, "use after free"
            context.compute(addresses)


@contextmanager
def capture(graph):
    Context.recording = graph
    try:
        yield
    finally:
        Context.recording = None


def patch_cuda(monkeypatch):
    """Streams and CUDA graphs for the contexts above."""
    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
