"""The DCNv2 kernels from Python, by ctypes, on torch tensors: what tests and benchmarks call."""

import ctypes
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

GENERIC_TACTIC = 1
_TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.int8: 3}
_INTEGERS = (
    *("type", "offset_type", "output_type", "layout", "offset_layout", "output_layout"),
    *("input_stride", "offset_stride", "mask_stride", "output_stride"),
    *("batch", "channels", "height", "width", "out_channels", "out_height", "out_width"),
    *("kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w", "dilation_h", "dilation_w"),
    *("groups", "offset_groups"),
)
_FLAGS = ("packed_offset_mask", "weight_ohwi", "relu", "allow_tf32")
_POINTERS = ("input", "offset", "mask", "weight", "bias", "scale", "output", "workspace")


class _Problem(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in _INTEGERS] + [(name, ctypes.c_bool) for name in _FLAGS]


class _Tensors(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _POINTERS]


class KernelError(Exception):
    """A launch that failed; its text names the CUDA error."""


class Layer:
    """One DCNv2 layer, ready to be run again and again on the tensors that it was made of.

    Args:
        input: [N, C, H, W].
        offset: [N, 2 * offset_groups * taps, H', W'] of (y, x) pairs; with `packed`
            [N, 3 * offset_groups * taps, H', W'], the last third of it the mask before its sigmoid.
        mask: [N, offset_groups * taps, H', W'] or None.
        weight: [O, C / groups, kh, kw].
        bias: [O] or None.
        stride: (y, x), as `padding` and `dilation`.
        padding: Pixels.
        dilation: Pixels.
        groups: Of the weights.
        offset_groups: Sets of offsets.
        channels_last: Memory layout of input and output; also of offset and mask.
        pad_channels: With `channels_last`, round offset and mask up to multiples of 8 channels as
            TensorRT does.
        packed: See `offset`.
        weight_ohwi: Repack the weights beforehand.
        relu: Clamp the output at zero.
        allow_tf32: For FP32 tensors.
        scale: [O], from the sums of an INT8 layer's products to its output; its bias is FP32 then, too.
        output_type: Of an INT8 layer; that of the offsets if None.
        planes: Input and output of an INT8 layer in planes of 32 channels; FP16 output is channels-last.

    Attributes:
        tensors: By name, laid out as the kernel reads them.
        output: [N, O, H', W'].
    """

    def __init__(
        self,
        input: Tensor,
        offset: Tensor,
        mask: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        *,
        stride: tuple[int, int] = (1, 1),
        padding: tuple[int, int] = (1, 1),
        dilation: tuple[int, int] = (1, 1),
        groups: int = 1,
        offset_groups: int = 1,
        channels_last: bool = True,
        pad_channels: bool = False,
        packed: bool = False,
        weight_ohwi: bool = True,
        relu: bool = False,
        allow_tf32: bool = False,
        scale: Tensor | None = None,
        output_type: torch.dtype | None = None,
        planes: bool = False,
    ) -> None:
        batch, channels, height, width = input.shape
        self.tensors: dict[str, Tensor] = {}
        offset_channels = self._keep("offset", offset, channels_last, pad_channels)
        mask_channels = 0 if mask is None else self._keep("mask", mask, channels_last, pad_channels)
        self._keep("input", input, channels_last, pad=False)
        if planes:
            self.tensors["input"] = to_planes(input)
        self.tensors["weight"] = (weight.permute(0, 2, 3, 1) if weight_ohwi else weight).contiguous()
        if bias is not None:
            self.tensors["bias"] = bias.contiguous()
        if scale is not None:
            self.tensors["scale"] = scale.contiguous()
            output_type = output_type or offset.dtype
        output_type = output_type or input.dtype
        output_planes = planes and output_type == torch.int8
        out_shape = (batch, weight.shape[0], *offset.shape[2:])
        self.output = torch.empty(
            out_shape,
            dtype=output_type,
            device=input.device,
            memory_format=torch.channels_last if channels_last else torch.contiguous_format,
        )
        # NaN everywhere shows what a kernel did not write.
        self.output.fill_(float("nan") if output_type.is_floating_point else -128)
        self._planes = to_planes(self.output) if output_planes else None
        self.problem = _Problem(
            _TYPES[input.dtype],
            _TYPES[offset.dtype],
            _TYPES[output_type],
            2 if planes else int(channels_last),
            int(channels_last),
            2 if output_planes else int(channels_last),
            *(channels, offset_channels, mask_channels, weight.shape[0]),
            *(batch, channels, height, width),
            *out_shape[1:],
            *weight.shape[2:],
            *stride,
            *padding,
            *dilation,
            *(groups, offset_groups),
            *(packed, weight_ohwi, relu, allow_tf32),
        )
        self._pointers = _Tensors(**{name: kept.data_ptr() for name, kept in self.tensors.items()})
        self._pointers.output = (self.output if self._planes is None else self._planes).data_ptr()

    def _keep(self, name: str, tensor: Tensor, channels_last: bool, pad: bool) -> int:
        if channels_last:
            tensor = tensor.permute(0, 2, 3, 1)
            if pad:
                tensor = torch.nn.functional.pad(tensor, (0, -tensor.shape[3] % 8), value=float("nan"))
        self.tensors[name] = tensor.contiguous()
        return tensor.shape[3] if channels_last else 0

    def use_workspace(self, size: int) -> None:
        """Make room for `size` bytes that a tactic asks for."""
        self.tensors["workspace"] = torch.empty(max(size, 1), dtype=torch.uint8, device=self.output.device)
        self._pointers.workspace = self.tensors["workspace"].data_ptr()

    def read(self) -> Tensor:
        """The output [N, O, H', W'], from planes if need be."""
        if self._planes is None:
            return self.output
        return self._planes.permute(0, 1, 4, 2, 3).reshape(self.output.shape)

    @property
    def references(self) -> tuple[Any, Any]:
        """Pointers to the problem and to the tensors, for a call into the library."""
        return ctypes.byref(self.problem), ctypes.byref(self._pointers)


def to_planes(tensor: Tensor) -> Tensor:
    """[N, C, H, W] as [N, C / 32, H, W, 32], a copy."""
    batch, channels, *sides = tensor.shape
    return tensor.reshape(batch, channels // 32, 32, *sides).permute(0, 1, 3, 4, 2).contiguous()


class Kernels:
    """`libdcnv2_kernel.so`, the plugin's kernels without TensorRT.

    Raises:
        OSError: If the library cannot be loaded.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.dcnv2_workspace_size.restype = ctypes.c_size_t
        self._library.dcnv2_error_name.restype = ctypes.c_char_p

    def tactics(self, layer: Layer) -> list[int]:
        """Tactics that can run the layer, best guess first."""
        numbers = (ctypes.c_int32 * 256)()
        count = self._library.dcnv2_tactics(layer.references[0], numbers, len(numbers))
        return list(numbers[:count])

    def workspace_size(self, layer: Layer, tactic: int) -> int:
        """Bytes of workspace that the tactic needs."""
        return self._library.dcnv2_workspace_size(layer.references[0], ctypes.c_int32(tactic))

    def run(self, layer: Layer, tactic: int) -> Tensor:
        """Enqueue the layer on torch's current stream; returns its output [N, O, H', W'].

        Raises:
            KernelError: If the launch fails.
        """
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        error = self._library.dcnv2_forward(*layer.references, ctypes.c_int32(tactic), stream)
        if error:
            raise KernelError(f"tactic {tactic}: {self._library.dcnv2_error_name(error).decode()}")
        return layer.read()
