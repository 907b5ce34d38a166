"""From a trained ensemble to an ONNX graph: normalisation inside, BatchNorm folded, any image size."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from d2ed2q.backbones import StagedNetwork
from d2ed2q.ensemble import DeepEnsemble, learner_probabilities

__all__ = ["FloatGraph", "float_graph", "fold_batch_norm", "learner_graph"]

OPSET = 20
_LARGEST = 2**16
_WRAPPER = "wrapped."
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@dataclass(frozen=True)
class FloatGraph:
    """An ensemble as an ONNX graph in float32.

    Attributes:
        model: input ``image``, float32 ``1×C×H×W`` in [0, 1]; output ``probabilities``, float32 ``(K+1)×1×C×H×W``; of
            volumes with D before H. Initializers of weights have the name of the ensemble's parameter.
        gains: by parameter, what folding BatchNorm multiplied each output channel with; 1 where nothing was folded.
    """

    model: onnx.ModelProto
    gains: dict[str, Tensor]


class _Probabilities(nn.Module):
    def __init__(self, ensemble: nn.Module) -> None:
        super().__init__()
        self.wrapped = ensemble

    def forward(self, image: Tensor) -> Tensor:
        return learner_probabilities(self.wrapped(image).logits)


class _OneLearner(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.wrapped = network

    def forward(self, image: Tensor) -> Tensor:
        return learner_probabilities(self.wrapped(image)[None])


def fold_batch_norm(module: nn.Module, example: Tensor) -> tuple[nn.Module, dict[str, Tensor]]:
    """Folds every BatchNorm that follows a convolution, and only it, into the convolution.

    Which one follows which is seen by running the module once, so that it need not be written in a certain way.

    Args:
        module: in evaluation mode; left as it is.
        example: an input.

    Returns:
        tuple: a folded copy, and by name of the weight what each output channel was multiplied with.
    """
    folded = copy.deepcopy(module)
    names = {child: name for name, child in folded.named_modules()}
    made_by: dict[int, nn.Module] = {}
    kept: list[Tensor] = []  # so that no second tensor gets the identity of an earlier one
    calls: dict[nn.Module, int] = {}
    pairs: dict[nn.Module, nn.Module] = {}

    def after(child: nn.Module, _: Any, output: Tensor) -> None:
        calls[child] = calls.get(child, 0) + 1
        if isinstance(child, _CONVOLUTIONS):
            made_by[id(output)] = child
            kept.append(output)

    def before(child: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if id(inputs[0]) in made_by:
            pairs[child] = made_by[id(inputs[0])]

    handles = []
    for child in folded.modules():
        if isinstance(child, (*_CONVOLUTIONS, *_NORMS)):
            handles.append(child.register_forward_hook(after))
            if isinstance(child, _NORMS):
                handles.append(child.register_forward_pre_hook(before))
    with torch.no_grad():
        expected = folded(example)
    for handle in handles:
        handle.remove()
    once = {
        norm: convolution
        for norm, convolution in pairs.items()
        if calls[convolution] == calls[norm] == 1 and not (_is_transposed(convolution) and convolution.groups != 1)
    }
    gains = {}
    for norm, convolution in _alone(folded, example, expected, once).items():
        name = names[convolution]
        assert isinstance(convolution, _CONVOLUTIONS)
        assert isinstance(norm, _NORMS)
        fused = fuse_conv_bn_eval(convolution, norm, transpose=_is_transposed(convolution))
        _replace(folded, name, fused)
        _replace(folded, names[norm], nn.Identity())
        gains[f"{name}.weight"] = _gain(norm)
    return folded, gains


def _alone(
    module: nn.Module, example: Tensor, expected: Tensor, pairs: dict[nn.Module, nn.Module]
) -> dict[nn.Module, nn.Module]:
    """The pairs whose convolution feeds its norm and nothing else: whatever all others get, the result is the same."""
    if not pairs or _survives(module, example, expected, pairs):
        return pairs
    return {norm: conv for norm, conv in pairs.items() if _survives(module, example, expected, {norm: conv})}


@torch.no_grad()
def _survives(module: nn.Module, example: Tensor, expected: Tensor, pairs: dict[nn.Module, nn.Module]) -> bool:
    real: dict[nn.Module, Tensor] = {}

    def poison(convolution: nn.Module, _: Any, output: Tensor) -> Tensor:
        real[convolution] = output
        return -3 * output - 1  # not NaN, which a comparison would swallow

    handles = [convolution.register_forward_hook(poison) for convolution in pairs.values()]
    for norm, convolution in pairs.items():
        handles.append(norm.register_forward_pre_hook(lambda _, inputs, source=convolution: (real[source],)))
    try:
        return torch.equal(module(example), expected)
    finally:
        for handle in handles:
            handle.remove()


def _gain(norm: Any) -> Tensor:
    gain: Tensor = torch.rsqrt(norm.running_var + norm.eps)
    return (gain if norm.weight is None else gain * norm.weight).detach()


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)


def float_graph(ensemble: DeepEnsemble) -> FloatGraph:
    """Exports an ensemble to ONNX; every spatial axis may be any multiple of its stride.

    Args:
        ensemble: trained; left as it is.
    """
    return _export(_Probabilities(copy.deepcopy(ensemble)).cpu().eval(), ensemble.meta)


def learner_graph(network: StagedNetwork) -> FloatGraph:
    """Exports one network alone; its output is ``1×1×C×H×W``.

    Args:
        network: left as it is.
    """
    return _export(_OneLearner(copy.deepcopy(network)).cpu().eval(), network)


def _export(module: nn.Module, network: StagedNetwork) -> FloatGraph:
    extent = network.minimum // network.stride
    # Different sizes above the minimum, so that none is taken for a constant.
    size = ((extent + axis) * network.stride for axis in range(1, network.dims + 1))
    example = torch.rand(1, network.in_channels, *size)
    folded, gains = fold_batch_norm(module, example)
    free = {
        axis: network.stride * torch.export.Dim(name, min=extent, max=_LARGEST // network.stride)
        for axis, name in enumerate("dhw"[-network.dims :], start=2)
    }
    model = _traced(folded, example, free)
    every = {
        name: torch.ones(parameter.shape[1 if _is_transposed(folded.get_submodule(name.rpartition(".")[0])) else 0])
        for name, parameter in folded.named_parameters()
        if name.endswith("weight") and parameter.ndim > 1
    }
    return FloatGraph(model, {name.removeprefix(_WRAPPER): gain for name, gain in (every | gains).items()})


def _traced(module: nn.Module, example: Tensor, free: dict[int, Any]) -> onnx.ModelProto:
    program = _quietly(
        lambda: torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=["image"],
            output_names=["probabilities"],
            opset_version=OPSET,
            external_data=False,
            dynamic_shapes={"image": free},
        )
    )
    model: onnx.ModelProto = program.model_proto
    _strip(model)
    return model


def _is_transposed(layer: nn.Module) -> bool:
    return isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))


def _quietly(export: Callable[[], Any]) -> Any:
    """The exporter logs and warns of its own affairs: registered operators, tracing of comparisons."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return export()
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _strip(model: onnx.ModelProto) -> None:
    """Removes what tells of the machine that exported: source paths, stack traces; and the wrapper from the names."""
    graph = model.graph
    for holder in (model, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]
    model.producer_name, model.producer_version = "d2ed2q", ""
    graph.name = "ensemble"
    for initializer in graph.initializer:
        initializer.name = initializer.name.removeprefix(_WRAPPER)
    for node in graph.node:
        for index, name in enumerate(node.input):
            node.input[index] = name.removeprefix(_WRAPPER)
