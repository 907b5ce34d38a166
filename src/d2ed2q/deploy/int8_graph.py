"""From a float graph to one with int8 weights and activations, in the standard's QuantizeLinear form."""

from __future__ import annotations

import contextlib
import io
import logging
import re
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from d2ed2q.deploy.graph import FloatGraph
from d2ed2q.deploy.int8_weights import Int8Weight
from d2ed2q.deploy.telemetry import without_telemetry
from d2ed2q.errors import ConfigError

__all__ = [
    "CALIBRATIONS",
    "activation_layers",
    "graph_weights",
    "int8_activations",
    "int8_weights",
    "with_float_layers",
]

CALIBRATIONS = {
    "mean-min-max": "MEAN_MINMAX",
    "min-max": "MINMAX",
    "percentile": "MEAN_QUANTILE",
    "histogram": "HISTOGRAM",
}
"""Ways to find the ranges of activations, and NNCF's names for them."""

_CODES, _SCALE, _WEIGHT = "/codes", "/scale", "/weight"
_LAYERS = ("Conv", "ConvTranspose", "Gemm")


def int8_activations(model: onnx.ModelProto, images: Sequence[np.ndarray], method: str) -> onnx.ModelProto:
    """Finds the ranges of all activations on images, with NNCF, and rounds them to 8 bits in the graph.

    Args:
        model: float32.
        images: float32 ``C×H×W`` in [0, 1], of sizes that the graph takes.
        method: one of :data:`CALIBRATIONS`.

    Raises:
        ConfigError: an unknown method.
    """
    if method not in CALIBRATIONS:
        raise ConfigError(f"unknown calibration {method!r}: choose {', '.join(CALIBRATIONS)}")
    without_telemetry()
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, OverflowFix
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    dataset = nncf.Dataset([{"image": image[None]} for image in images])
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # its progress bars
            quantized: onnx.ModelProto = nncf.quantize(
                model,
                dataset,
                preset=nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(images),
                advanced_parameters=AdvancedQuantizationParameters(
                    # The weights are exact as they are: halving them, or moving biases after them, would undo that.
                    overflow_fix=OverflowFix.DISABLE,
                    disable_bias_correction=True,
                    activations_range_estimator_params=getattr(RangeEstimatorParametersSet, CALIBRATIONS[method]),
                ),
            )
    finally:
        logger.setLevel(level)
    _unsigned(quantized)
    for node in quantized.graph.node:
        del node.metadata_props[:]
    del quantized.metadata_props[:]
    return quantized


def _unsigned(model: onnx.ModelProto) -> None:
    """Makes every asymmetric int8 activation uint8, with the zero point moved by 128: the same numbers.

    OpenVINO runs uint8 activations with a zero point as they are. Given int8 ones, it computes the layers after them in
    float, and not quite the same.
    """
    zeros = {initializer.name: initializer for initializer in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            zero = numpy_helper.to_array(zeros[node.input[2]])
            if zero.dtype == np.int8 and zero.any():
                moved = (zero.astype(np.int16) + 128).astype(np.uint8)
                zeros[node.input[2]].CopyFrom(numpy_helper.from_array(moved, node.input[2]))
    makers = {output: node for node in model.graph.node for output in node.output}
    for node in model.graph.node:
        maker = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if maker is not None:
            node.input[2] = maker.input[2]
    del model.graph.value_info[:]


def int8_weights(model: onnx.ModelProto, graph: FloatGraph, weights: Mapping[str, Int8Weight]) -> onnx.ModelProto:
    """Puts exact int8 weights into a graph, in the place of float ones or of those that a calibration rounded anew.

    Args:
        model: the graph, float or with quantized activations; changed in place.
        graph: the float graph it was made of.
        weights: by parameter, as trained; BatchNorm is folded into the scales here.

    Returns:
        onnx.ModelProto: the same model. Every weight is ``DequantizeLinear(NAME/codes, NAME/scale)``.

    Raises:
        ConfigError: a weight is not in the graph, or not as a layer's own.
    """
    content = model.graph
    constants = {initializer.name: initializer for initializer in content.initializer}
    makers = {output: node for node in content.node for output in node.output}
    new_nodes, new_constants = {}, []
    for node in content.node:
        if node.op_type not in _LAYERS:
            continue
        source = node.input[1]
        maker = makers.get(source)
        if maker is not None and maker.op_type == "DequantizeLinear":
            source = re.sub(r"_\d+$", "", maker.input[0].removeprefix("q_output_"))
        weight = weights.get(source)
        if weight is None or (source in constants and tuple(constants[source].dims) != tuple(weight.codes.shape)):
            continue
        if source not in new_nodes:
            folded = weight.folded(graph.gains[source])
            new_constants.append(numpy_helper.from_array(folded.codes.numpy(), source + _CODES))
            new_constants.append(numpy_helper.from_array(folded.scale.numpy(), source + _SCALE))
            new_nodes[source] = helper.make_node(
                "DequantizeLinear",
                [source + _CODES, source + _SCALE],
                [source + _WEIGHT],
                name=f"{source}/dequantize",
                axis=weight.axis,
            )
        node.input[1] = source + _WEIGHT
    for name in weights:
        if name not in new_nodes:
            raise ConfigError(
                f"the weight {name} was not exported as one of {', '.join(_LAYERS)}, and only those can be int8; write "
                "a linear layer on more than two axes as a 1×1 convolution, and train again"
            )
    every = [*new_nodes.values(), *content.node]
    del content.node[:]
    content.node.extend(every)
    content.initializer.extend(new_constants)
    _remove_unused(model)
    return model


def graph_weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """Reads the int8 weights back out of a graph.

    Returns:
        dict: by parameter: codes (int8), scales (float32, one an output channel), and the output-channel dimension.
    """
    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].endswith(_CODES):
            codes, scale = (numpy_helper.to_array(constants[name]) for name in node.input[:2])
            axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
            found[node.input[0].removesuffix(_CODES)] = (codes, scale, axis)
    return found


def activation_layers(model: onnx.ModelProto) -> list[str]:
    """Names of the layers whose input is rounded to 8 bits, in the order of the graph."""
    makers = {output: node for node in model.graph.node for output in node.output}
    found: dict[str, None] = {}
    for node in model.graph.node:
        name = _layer(node)
        maker = makers.get(node.input[0]) if name is not None else None
        if name is not None and maker is not None and maker.op_type == "DequantizeLinear":
            found[name] = None
    return list(found)


def with_float_layers(model: onnx.ModelProto, layers: Sequence[str]) -> onnx.ModelProto:
    """A copy in which some layers take their input in float32, as the layer before gave it.

    Args:
        model: with quantized activations.
        layers: of :func:`activation_layers`.

    Raises:
        ConfigError: there is no such layer.
    """
    known = activation_layers(model)
    for layer in layers:
        if layer not in known:
            raise ConfigError(f"there is no quantized layer {layer!r}; the first of {len(known)} are {known[:3]}")
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    makers = {output: node for node in changed.graph.node for output in node.output}
    for node in changed.graph.node:
        if _layer(node) in layers:
            dequantize = makers[node.input[0]]
            node.input[0] = makers[dequantize.input[0]].input[0]
    _remove_unused(changed)
    return changed


def _layer(node: onnx.NodeProto) -> str | None:
    """Name of the module whose weight a node multiplies with."""
    if node.op_type in _LAYERS and node.input[1].endswith(_WEIGHT):
        return str(node.input[1].removesuffix(_WEIGHT).removesuffix(".weight"))
    return None


def _remove_unused(model: onnx.ModelProto) -> None:
    content = model.graph
    needed = {output.name for output in content.output}
    kept = []
    for node in reversed(content.node):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    constants = [initializer for initializer in content.initializer if initializer.name in needed]
    del content.node[:]
    content.node.extend(reversed(kept))
    del content.initializer[:]
    content.initializer.extend(constants)
