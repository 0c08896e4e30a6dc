"""As much of TensorRT and CuPy as `benchmarks.tensorrt_engine` uses, on the CPU, by ONNX Runtime."""

import ctypes
import weakref
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime


class TensorRT:
    """In place of the module; a plan is an ONNX file."""

    __version__ = "10.6.0"
    Logger = SimpleNamespace
    IProfiler = object

    def __init__(self):
        self.Logger = lambda severity: None
        self.Logger.ERROR = 1
        self.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=Engine)

    @staticmethod
    def nptype(dtype):
        return dtype


class Engine:
    def __init__(self, serialized):
        graph = onnx.load_from_string(serialized).graph
        self.inputs, self.outputs = list(graph.input), list(graph.output)
        self.tensors = {tensor.name: tensor for tensor in (*self.inputs, *self.outputs)}
        self.num_io_tensors = len(self.tensors)
        self.session = onnxruntime.InferenceSession(serialized)

    def get_tensor_name(self, index):
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name):
        return onnx.helper.tensor_dtype_to_np_dtype(self.tensors[name].type.tensor_type.elem_type)

    def get_tensor_shape(self, name):
        return tuple(dim.dim_value or -1 for dim in self.tensors[name].type.tensor_type.shape.dim)

    def create_execution_context(self):
        return Context(self)


class Context:
    recording = None

    def __init__(self, engine):
        self.engine, self.shapes, self.addresses = engine, {}, {}

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        (batch,) = {shape[0] for shape in self.shapes.values()}
        return (batch, *self.engine.get_tensor_shape(name)[1:])

    def execute_async_v3(self, stream):
        if Context.recording is None:
            self.compute(self.addresses)
        else:
            # Like CUDA's, a graph knows addresses, and owns nothing.
            Context.recording.append((weakref.ref(self), dict(self.addresses)))
        return True

    def compute(self, addresses):
        feeds = {tensor.name: self._memory(tensor.name, addresses) for tensor in self.engine.inputs}
        names = [tensor.name for tensor in self.engine.outputs]
        for name, values in zip(names, self.engine.session.run(names, feeds), strict=True):
            self._memory(name, addresses)[...] = values

    def _memory(self, name, addresses):
        shape, dtype = self.get_tensor_shape(name), self.engine.get_tensor_dtype(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return np.frombuffer((ctypes.c_uint8 * size).from_address(addresses[name]), dtype).reshape(shape)


class Stream:
    ptr = 1

    def __init__(self, non_blocking=False):
        assert non_blocking, "it would wait for the default stream"

    def synchronize(self):
        pass

    def begin_capture(self):
        Context.recording = []

    def end_capture(self):
        nodes, Context.recording = Context.recording, None
        return Graph(nodes)


class Graph:
    def __init__(self, nodes):
        self.nodes = nodes

    def launch(self, stream):
        for reference, addresses in self.nodes:
            context = reference()
            assert context is not None, "use after free"
            context.compute(addresses)


class Array:
    """Of CuPy, in the host's memory."""

    def __init__(self, shape, dtype):
        self.values = np.zeros(shape, dtype)
        self.data = SimpleNamespace(ptr=self.values.ctypes.data)

    def set(self, values, stream):
        self.values[...] = values

    def get(self):
        return self.values.copy()


CUPY = SimpleNamespace(empty=Array, cuda=SimpleNamespace(Stream=Stream))
