"""What TensorRT-RTX made of a network: its serialized engines describe their layers in text.

An engine is not inspected by TensorRT's own inspector here: that needs the GPU.
"""

import re
from collections import Counter

LAYERS = {"corrltn": "convolution", "deconvolution": "transposed", "custom_layer": "plugin"}


def layer_types(engine: bytes) -> Counter[tuple[str, str]]:
    """How many layers of each kind (a value of `LAYERS`) compute on each type ("float", "half", "int8")."""
    text = engine.decode("latin1")
    types = dict(re.findall(r'tensor=\{[^\n]*?name="([^"]*)"[^\n]*? type=(\w+)', text))
    found: Counter[tuple[str, str]] = Counter()
    for operator, inputs in re.findall(rf"\n *({'|'.join(LAYERS)})=\{{[^\n]*? input=\{{([^}}]*)\}}", text):
        data, second = re.findall(r'"([^"]*)"', inputs)[:2]
        # The plugin's data may be INT8 and its offsets FP16, or FP16 and FP32.
        assert operator == "custom_layer" or types[data] == types[second], (operator, data, second)
        found[LAYERS[operator], types[data]] += 1
    return found


def allows_tf32(engine: bytes) -> bool:
    (flag,) = set(re.findall(rb"\btf32=(\d)", engine))
    return flag == b"1"
