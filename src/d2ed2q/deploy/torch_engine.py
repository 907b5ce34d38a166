"""PyTorch as the reference engine: runs a bundle's graph operator by operator, as the ONNX standard words them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from d2ed2q.errors import BundleError
from d2ed2q.limits import usable_cores

__all__ = ["TorchEngine"]

_Attributes = dict[str, Any]


def _padding(attributes: _Attributes, axes: int) -> list[int]:
    pads = list(attributes.get("pads", (0, 0) * axes))
    half = len(pads) // 2
    if pads[:half] != pads[half:] or attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
        raise NotImplementedError("padding that differs between the two sides")
    return pads[:half]


def _convolution(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    make = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}[weight.ndim]
    result: Tensor = make(
        x, weight, bias, a.get("strides", 1), _padding(a, x.ndim - 2), a.get("dilations", 1), a.get("group", 1)
    )
    return result


def _transposed_convolution(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, weight, bias = (*inputs, None)[:3]
    make = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}[weight.ndim]
    options = (
        a.get("strides", 1),
        _padding(a, x.ndim - 2),
        a.get("output_padding", 0),
        a.get("group", 1),
        a.get("dilations", 1),
    )
    result: Tensor = make(x, weight, bias, *options)
    return result


def _max_pool(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    make = {3: F.max_pool1d, 4: F.max_pool2d, 5: F.max_pool3d}[inputs[0].ndim]
    kernel = a["kernel_shape"]
    strides = a.get("strides", [1] * len(kernel))
    result: Tensor = make(
        inputs[0],
        kernel,
        strides,
        _padding(a, len(kernel)),
        a.get("dilations", 1),
        ceil_mode=bool(a.get("ceil_mode", 0)),
    )
    return result


def _resize(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, _, scales, sizes = (*inputs, None, None, None)[:4]
    mode, coordinates = a.get("mode", b"nearest"), a.get("coordinate_transformation_mode", b"half_pixel")
    if mode != b"linear" or coordinates not in (b"half_pixel", b"pytorch_half_pixel"):
        raise NotImplementedError(f"Resize with mode {mode!r} and coordinates {coordinates!r}")
    spatial = x.ndim - 2
    size = sizes.tolist()[-spatial:] if sizes is not None and sizes.numel() else None
    if size is None:
        size = [int(extent * scale) for extent, scale in zip(x.shape[2:], scales.tolist()[2:], strict=True)]
    return F.interpolate(x, size, mode={1: "linear", 2: "bilinear", 3: "trilinear"}[spatial], align_corners=False)


def _reduce_mean(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    axes = inputs[1].tolist() if len(inputs) > 1 else a["axes"]
    result: Tensor = inputs[0].mean(axes, keepdim=bool(a.get("keepdims", 1)))
    return result


def _per_channel(parameter: Tensor, like: Tensor, a: _Attributes) -> Tensor:
    if parameter.ndim == 0:
        return parameter
    shape = [1] * like.ndim
    shape[a.get("axis", 1)] = -1
    return parameter.reshape(shape)


def _quantize(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, scale, zero = inputs
    limits = torch.iinfo(zero.dtype)
    steps = torch.round(x / _per_channel(scale, x, a)) + _per_channel(
        zero, x, a
    )  # halves to even, as the standard has it
    return steps.clamp_(limits.min, limits.max).to(zero.dtype)


def _dequantize(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, scale, zero = (*inputs, None)[:3]
    steps = x.to(scale.dtype)
    if zero is not None:
        steps = steps - _per_channel(zero, x, a).to(scale.dtype)
    result: Tensor = steps * _per_channel(scale, x, a)
    return result


def _softmax(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    return torch.softmax(inputs[0], a.get("axis", -1))


def _unsqueeze(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    result: Tensor = inputs[0]
    for axis in sorted(inputs[1].tolist()):
        result = result.unsqueeze(axis)
    return result


def _shape(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    return torch.tensor(inputs[0].shape[a.get("start", 0) : a.get("end")])


def _slice(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, starts, ends, axes, steps = (*inputs, None, None)[:5]
    index = [slice(None)] * x.ndim
    for position, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        axis = axes.tolist()[position] if axes is not None else position
        index[axis] = slice(start, end, steps.tolist()[position] if steps is not None else None)
    result: Tensor = x[tuple(index)]
    return result


def _squeeze(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x = inputs[0]
    result: Tensor = x.squeeze(inputs[1].tolist()) if len(inputs) > 1 else x.squeeze()
    return result


def _reshape(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    x, shape = inputs[0], inputs[1].tolist()
    kept = [extent if extent or a.get("allowzero", 0) else x.shape[axis] for axis, extent in enumerate(shape)]
    result: Tensor = x.reshape(kept)
    return result


def _depth_to_space(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    if a.get("mode", b"DCR") != b"CRD":
        raise NotImplementedError("DepthToSpace of another order than PyTorch's pixel_shuffle")
    return F.pixel_shuffle(inputs[0], a["blocksize"])


def _divide(inputs: Sequence[Any], a: _Attributes) -> Tensor:
    whole = not inputs[0].is_floating_point()  # of whole numbers, sizes above all, the standard cuts the fraction off
    return torch.div(inputs[0], inputs[1], rounding_mode="trunc" if whole else None)


_OPERATORS: dict[str, Callable[[Sequence[Any], _Attributes], Tensor]] = {
    "Add": lambda i, a: i[0] + i[1],
    "And": lambda i, a: i[0] & i[1],
    "BatchNormalization": lambda i, a: F.batch_norm(i[0], i[3], i[4], i[1], i[2], eps=a.get("epsilon", 1e-5)),
    "Cast": lambda i, a: i[0].to({1: torch.float32, 7: torch.int64, 9: torch.bool}[a["to"]]),
    "Concat": lambda i, a: torch.cat(list(i), a["axis"]),
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "DepthToSpace": _depth_to_space,
    "DequantizeLinear": _dequantize,
    "Div": _divide,
    "GreaterOrEqual": lambda i, a: i[0] >= i[1],
    "Identity": lambda i, a: i[0],
    "InstanceNormalization": lambda i, a: F.instance_norm(i[0], None, None, i[1], i[2], eps=a.get("epsilon", 1e-5)),
    "LeakyRelu": lambda i, a: F.leaky_relu(i[0], a.get("alpha", 0.01)),
    "MaxPool": _max_pool,
    "Mul": lambda i, a: i[0] * i[1],
    "Not": lambda i, a: ~i[0],
    "Or": lambda i, a: i[0] | i[1],
    "PRelu": lambda i, a: torch.where(i[0] < 0, i[0] * i[1], i[0]),
    "QuantizeLinear": _quantize,
    "ReduceMean": _reduce_mean,
    "Relu": lambda i, a: torch.relu(i[0]),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sigmoid": lambda i, a: torch.sigmoid(i[0]),
    "Slice": _slice,
    "Softmax": _softmax,
    "Squeeze": _squeeze,
    "Sub": lambda i, a: i[0] - i[1],
    "Unsqueeze": _unsqueeze,
    "Where": lambda i, a: torch.where(i[0], i[1], i[2]),
}


class TorchEngine:
    """Runs the graph in PyTorch: slow, and right by the letter of the standard.

    Args:
        model: ONNX bytes, or a model that was read.
        threads: cores to use; None leaves PyTorch's setting.
        streams: images that are computed at the same time; each gets its share of the cores.
        float_activations: leave out the rounding of activations: the trained few-bit network itself.

    Raises:
        BundleError: the graph uses an operator that this engine does not know.
    """

    name = "torch"

    def __init__(
        self,
        model: bytes | onnx.ModelProto,
        threads: int | None = None,
        streams: int = 1,
        float_activations: bool = False,
    ) -> None:
        self.version = str(torch.__version__)
        if threads is not None or streams > 1:
            torch.set_num_threads(max(1, (threads or usable_cores()) // streams))
        graph = (onnx.load_from_string(model) if isinstance(model, bytes) else model).graph
        unknown = sorted({node.op_type for node in graph.node} - set(_OPERATORS))
        if unknown:
            raise BundleError(f"the torch engine does not know the operator {unknown[0]}; use another engine")
        self._constants = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
        self._nodes = [
            (
                node.op_type,
                tuple(node.input),
                node.output[0],
                {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute},
            )
            for node in graph.node
        ]
        self._output = graph.output[0].name
        self._float = float_activations
        self._fold_weights()
        self._last_use = {name: index for index, (_, inputs, _, _) in enumerate(self._nodes) for name in inputs}

    def _fold_weights(self) -> None:
        """Computes once what depends on constants only: above all the weights, int8 × scale."""
        rest = []
        for operator, inputs, output, attributes in self._nodes:
            if operator == "DequantizeLinear" and inputs[0] in self._constants:
                values = [self._constants[name] for name in inputs]
                self._constants[output] = _dequantize(values, attributes)
            else:
                rest.append((operator, inputs, output, attributes))
        self._nodes = rest

    @torch.no_grad()
    def run(self, image: np.ndarray) -> np.ndarray:
        """See :class:`~d2ed2q.deploy.engines.Engine`."""
        values: dict[str, Tensor] = {"image": torch.from_numpy(image)}
        for index, (operator, inputs, output, attributes) in enumerate(self._nodes):
            given = [None if not name else values[name] if name in values else self._constants[name] for name in inputs]
            if self._float and operator in ("QuantizeLinear", "DequantizeLinear"):
                assert given[0] is not None
                values[output] = given[0]
            else:
                values[output] = _OPERATORS[operator](given, attributes)
            for name in inputs:
                if self._last_use[name] == index:
                    values.pop(name, None)
        result: np.ndarray = values[self._output].numpy()
        return result
