"""What INT8 quantizes by default, and where its Q/DQ pairs stand, in small graphs."""

from functools import partial

import foreign
import onnx_graphsurgeon as gs
import pytest

from export.graphs.surgery import import_graph, rewritten
from export.plan import quantize

WIDE, NARROW = quantize.MIN_CHANNELS, quantize.MIN_CHANNELS - 1


class Backbone(foreign.Graph):
    """A stem, what a test adds, and a head."""

    def __init__(self, channels=WIDE, *, pool=False):
        super().__init__(shape=(1, 3, 8, 8))
        self.last = self.relu(self.conv("x", 3, channels, name="stem"))
        if pool:
            self.last = self.pool(self.last)

    def layer(self, name, inputs=WIDE, outputs=WIDE, *, source=None, kernel=3):
        self.last = self.relu(self.conv(source or self.last, inputs, outputs, kernel, name=name))
        return self.last

    def relu(self, x):
        return self.add("Relu", [x])

    def pool(self, x):
        return self.add("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])

    def with_head(self, channels=WIDE):
        y = self.relu(self.conv(self.last, channels, WIDE, name="head"))
        return self.model(self.conv(y, WIDE, 1, 1, name="output"))

    def worth_quantizing(self):
        return quantize.worth_quantizing(import_graph(self.with_head()))


def quantized(model):
    feeds = [{"x": foreign.picture(1, 3, 8, 8)}]
    made = rewritten(model, partial(quantize.to_int8, feeds=feeds))
    nodes = gs.import_onnx(made).nodes
    pairs = [node for node in nodes if node.op == "QuantizeLinear" and node.inputs[0].inputs]
    return nodes, {pair.i(0).name for pair in pairs if pair.i(0).op != "Constant"}


def test_wide_convolutions_of_the_backbone():
    g = Backbone()
    for number, (inputs, outputs) in enumerate(
        [
            (WIDE, WIDE),
            (WIDE, WIDE),
            (WIDE, NARROW),
            (NARROW, NARROW),
            (NARROW, WIDE),
            (WIDE, WIDE),
            (WIDE, WIDE),
        ]
    ):
        g.layer(f"c{number}", inputs, outputs)
    assert g.worth_quantizing() == ["c0", "c1", "c5", "c6"]


def test_a_narrow_network_is_quantized_by_group():
    g = Backbone()
    for name in ("first", "second", "third"):
        g.layer(name, NARROW, NARROW)
    graph = import_graph(g.with_head())
    layers = quantize.layer_groups(graph)
    assert quantize.worth_quantizing(graph) == []
    expected = {name for group in quantize.NARROW_GROUPS for name in layers[group]}
    assert {"second", "third"} <= expected
    assert not expected & {*layers["outputs"], *layers["upsampling"]}
    assert set(quantize.names(graph)) == expected
    assert quantize.names(graph, ["outputs"]) == layers["outputs"]


def test_groups_of_channels_are_as_narrow_as_one():
    g = Backbone()
    for name in "abc":
        weight = g.weight(WIDE, WIDE // 2 if name == "b" else WIDE, 3, 3)
        group = 2 if name == "b" else 1
        g.last = g.add("Conv", [g.last, weight], name=name, pads=[1] * 4, group=group)
    g.layer("d")
    assert g.worth_quantizing() == ["c", "d"]


@pytest.mark.parametrize("between", ["Sigmoid", "Relu"])
def test_none_alone(between):
    """What stands between two must not need a DQ and a Q of its own."""
    g = Backbone()
    first = g.add(between, [g.conv(g.last, WIDE, WIDE, name="first")])
    g.layer("second", source=first)
    expected = [] if between == "Sigmoid" else ["first", "second"]
    assert g.worth_quantizing() == expected


@pytest.mark.parametrize("skip", ["stem", "read by another", "of another"])
def test_no_sum_with_what_is_not_int8(skip):
    """Of such a sum a Q for one summand is all that would be won."""
    g = Backbone()
    start = g.last
    if skip == "of another":
        start = g.layer("before")
    first = g.layer("first", source=start)
    second = g.conv(first, WIDE, WIDE, name="second")
    other = g.add("Sigmoid", [start]) if skip == "stem" else start
    g.last = g.relu(g.add("Add", [second, other]))
    g.layer("third")
    g.layer("fourth")
    names = g.worth_quantizing()
    dropped = ["first", "second"] if skip == "stem" else []
    assert dropped == [name for name in ("first", "second") if name not in names]
    assert names[-2:] == ["third", "fourth"]


def test_the_first_q_is_behind_the_pooling_of_what_is_not_int8():
    g = Backbone(pool=True)
    g.layer("a")
    g.layer("b")
    nodes, found = quantized(g.with_head())
    (pool,) = (node for node in nodes if node.op == "MaxPool")
    assert pool.name in found
    assert pool.i(0).op == "Relu"


def test_pooling_of_int8_is_int8():
    g = Backbone()
    g.layer("a")
    g.last = g.pool(g.last)
    g.layer("b")
    nodes, found = quantized(g.with_head())
    (pool,) = (node for node in nodes if node.op == "MaxPool")
    assert pool.name in found
    assert pool.i(0).op == "DequantizeLinear"


@pytest.mark.parametrize("joined", ["none", "one", "both"])
def test_parts_of_a_concat_are_int8_if_one_is_anyway(joined):
    g = Backbone(WIDE // 2)
    narrow = g.last
    wide = g.layer("a", WIDE // 2, WIDE)
    if joined != "none":
        wide = g.layer("b", source=g.layer("c", source=wide))
    other = g.layer("d", source=wide) if joined == "both" else g.add("Sigmoid", [narrow])
    channels = WIDE + (WIDE if joined == "both" else WIDE // 2)
    root = g.add("Concat", [wide, other], axis=1, name="join")
    g.layer("root", channels, WIDE, source=root, kernel=1)
    g.layer("last")
    nodes, found = quantized(g.with_head())
    (join,) = (node for node in nodes if node.op == "Concat")
    assert "join" in found
    expected = "DequantizeLinear" if joined != "none" else "Relu"
    assert join.i(0).op == expected
    assert join.i(1).op == ("Sigmoid" if joined == "none" else "DequantizeLinear")
