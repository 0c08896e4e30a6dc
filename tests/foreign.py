"""Small networks as other people export them, with DCNs of every kind."""

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 16


class Graph:
    """Grows a network node by node; weights are random, and the same each time."""

    def __init__(self, name="x", shape=("n", 3, "h", "w")):
        self.rng = np.random.default_rng(0)
        self.nodes, self.constants = [], []
        self.inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)]

    def constant(self, values, name=None):
        name = name or f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def add(self, op, inputs, *, name=None, domain=None, **attributes):
        out = f"t{len(self.nodes)}"
        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=name, domain=domain, **attributes))
        return out

    def weight(self, *shape, scale=None):
        scale = scale or 1 / np.sqrt(np.prod(shape[1:]))
        return self.constant(self.rng.normal(0, scale, shape).astype(np.float32))

    def conv(self, x, inputs, outputs, kernel=3, *, name=None, stride=1, scale=None):
        weight = self.weight(outputs, inputs, kernel, kernel, scale=scale)
        pads = [kernel // 2] * 4
        bias = self.constant(self.rng.normal(0, 0.1, outputs).astype(np.float32))
        return self.add("Conv", [x, weight, bias], name=name, pads=pads, strides=[stride, stride])

    def norm(self, x, channels, *, factor=1.0):
        """A BatchNorm that multiplies by about `factor`."""
        values = self.rng.uniform(0.5, 1.5, (4, channels)).astype(np.float32)
        values[0] *= factor
        return self.add("BatchNormalization", [x, *(self.constant(row) for row in values)])

    def model(self, output, opset=19):
        outputs = [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)]
        graph = helper.make_graph(self.nodes, "g", self.inputs, outputs, self.constants)
        imports = [helper.make_opsetid("", opset)]
        imports += [helper.make_opsetid(domain, 1) for domain in {node.domain for node in self.nodes} - {""}]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def separate(*, factor=2.0, scale=1.0, name="x"):
    """Of BiRefNet's kind: offsets and mask by two convolutions, the mask 2·sigmoid, BatchNorm, ReLU.

    The DCN's weights are `scale` times as large as usual, which the BatchNorm undoes.
    """
    g = Graph(name)
    x = g.add("Relu", [g.conv(name, 3, CHANNELS, stride=2, name="stem")])
    offset = g.conv(x, CHANNELS, 18, name="offset", scale=0.1)
    mask = g.add("Sigmoid", [g.conv(x, CHANNELS, 9, name="modulator", scale=0.1)])
    mask = g.add("Mul", [mask, g.constant(np.float32(factor))])
    weight = g.weight(CHANNELS, CHANNELS, 3, 3, scale=scale / 12)
    y = g.add("DeformConv", [x, weight, offset, "", mask], name="theirs", pads=[1] * 4, kernel_shape=[3, 3])
    y = g.add("Relu", [g.norm(y, CHANNELS, factor=1 / scale)])
    return g.model(g.add("Sigmoid", [g.conv(y, CHANNELS, 1, 1, name="head")]))


def flow(shape=(1, 3, 32, 48)):
    """Of a video network's kind: a map sampled where a convolution says, and joined with where that was."""
    g = Graph(shape=shape)
    x = g.conv("x", 3, CHANNELS, name="stem")
    moved = g.conv(x, CHANNELS, 2, name="flow")
    grid = g.add("Transpose", [moved], perm=[0, 2, 3, 1])
    grid = g.add("Mul", [grid, g.constant(np.float32(0.5))], name="normalise")
    y = g.add("GridSample", [x, grid], name="warp", align_corners=1, padding_mode="border", mode="bilinear")
    y = g.conv(g.add("Concat", [y, moved], axis=1), CHANNELS + 2, CHANNELS, name="joined")
    y = g.add("Add", [y, g.conv(moved, 2, CHANNELS, name="context")])
    return g.model(g.conv(g.add("Relu", [y]), CHANNELS, 3, name="last"))


def shared(count=3):
    """One DCN applied to several maps: its weight is one constant, and each has 8 offset groups."""
    g = Graph()
    weight = g.weight(CHANNELS, CHANNELS, 3, 3)
    bias = g.constant(np.zeros(CHANNELS, np.float32))
    x = g.conv("x", 3, CHANNELS, name="stem")
    for _ in range(count):
        packed = g.conv(x, CHANNELS, 27 * 2, scale=0.1)
        sizes = g.constant(np.array([36, 18], np.int64))
        g.nodes.append(helper.make_node("Split", [packed, sizes], [f"{packed}o", f"{packed}m"], axis=1))
        mask = g.add("Sigmoid", [f"{packed}m"])
        x = g.add(
            "DeformConv",
            [x, weight, f"{packed}o", bias, mask],
            pads=[1] * 4,
            kernel_shape=[3, 3],
            offset_group=2,
        )
    return g.model(g.conv(x, CHANNELS, 1, 1))


def run(model, feed):
    """What ONNX Runtime computes, without rewriting the graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return session.run(None, feed)[0]


def picture(*shape):
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def assert_types(model):
    """The types and shapes that passes left are those that follow from the nodes, all standard ones."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True)
    found, expected = (
        {info.name: info.type.tensor_type for info in each.graph.value_info} for each in (model, inferred)
    )
    assert found.keys() == expected.keys()
    for name, kind in expected.items():
        # Open sizes have names of the inference's own.
        sizes, known = ([side.dim_value for side in each.shape.dim] for each in (found[name], kind))
        assert (found[name].elem_type, sizes) == (kind.elem_type, known), name


def attributes(model, op="DCNv2"):
    """Of the nodes of one operator."""
    return [
        {each.name: helper.get_attribute_value(each) for each in node.attribute}
        for node in model.graph.node
        if node.op_type == op
    ]


def save(model, path):
    onnx.save(model, path)
    return path
