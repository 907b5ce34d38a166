"""The Open Inference Protocol (KServe v2), with binary tensors: what requests mean, and how answers are written.

The model's one input is ``image``, FP32 ``[N, C, H, W]`` in [0, 1], images of any size. Its outputs are
``probability`` (FP32 ``[N, C, H, W]``: the prediction, calibrated), ``learners`` (FP32 ``[N, K+1, C, H, W]``: every
learner's, not calibrated), ``mask`` (UINT8 ``[N, H, W]``: class numbers), ``doubt`` (FP32 ``[N]``) and ``refused``
(BOOL ``[N]``: whether the doubt is above the node's bound). Every answer's parameter ``refused`` says whether any is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from d2ed2q.deploy import Manifest
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.errors import DataError

__all__ = [
    "EXTENSIONS",
    "OUTPUTS",
    "InferRequest",
    "check_listed",
    "infer_response",
    "model_metadata",
    "parse_infer",
    "stacked",
]

EXTENSIONS = ("binary_tensor_data",)
OUTPUTS = ("probability", "learners", "mask", "doubt", "refused")
_TYPES = {np.dtype(np.float32): "FP32", np.dtype(np.uint8): "UINT8", np.dtype(np.bool_): "BOOL"}
_LARGEST_BATCH = 64
_MOST_LISTED = 1 << 22  # numbers that an answer may have as JSON, which takes ten times the memory of bytes


@dataclass(frozen=True, eq=False)
class InferRequest:
    """What somebody asks.

    Attributes:
        id: of the request, given back.
        images: float32 ``N×C×H×W`` in [0, 1].
        outputs: names of the outputs that are wanted, all where none is named, and whether each comes as binary.
        tta: test-time augmentation, from the request's parameters; ``none`` where none is named.
    """

    id: str
    images: np.ndarray
    outputs: Mapping[str, bool]
    tta: str


def model_metadata(manifest: Manifest, sha256: str) -> dict[str, Any]:
    """What ``GET /v2/models/NAME`` answers."""
    channels, learners = manifest.output.channels, manifest.output.learners + 1
    return {
        "name": manifest.name,
        "versions": [sha256[:16]],
        "platform": "d2ed2q",
        "inputs": [{"name": "image", "datatype": "FP32", "shape": [-1, manifest.input.channels, -1, -1]}],
        "outputs": [
            {"name": "probability", "datatype": "FP32", "shape": [-1, channels, -1, -1]},
            {"name": "learners", "datatype": "FP32", "shape": [-1, learners, channels, -1, -1]},
            {"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]},
            {"name": "doubt", "datatype": "FP32", "shape": [-1]},
            {"name": "refused", "datatype": "BOOL", "shape": [-1]},
        ],
    }


def parse_infer(
    body: bytes, header_length: str | None, given: InputSpec, most_pixels: int, longest: int
) -> InferRequest:
    """Reads an inference request.

    Args:
        body: JSON, or JSON and then the bytes of tensors.
        header_length: of the header ``Inference-Header-Content-Length``: length of the JSON; None is all of it.
        given: what the model takes.
        most_pixels: that one request may have.
        longest: side of an image.

    Raises:
        DataError: the request does not follow the protocol, or the model cannot take what it holds.
    """
    length = len(body)
    if header_length is not None:
        good = header_length.isascii() and header_length.isdigit() and len(header_length) <= 12
        if not good or int(header_length) > len(body):
            raise DataError("Inference-Header-Content-Length is no length within the body")
        length = int(header_length)
    try:
        content = json.loads(body[:length], parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the request is not JSON: {str(error)[:200]}") from error
    if not isinstance(content, dict):
        raise DataError("the request is no JSON object")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise DataError("the model has one input, image: inputs must be a list with it alone")
    images, used = _tensor(inputs[0], body[length:], given, most_pixels, longest)
    if used != len(body) - length:
        raise DataError(f"{len(body) - length} bytes follow the JSON, but the tensors say {used}")
    parameters = content.get("parameters", {})
    if not isinstance(parameters, dict):
        raise DataError("parameters must be an object")
    tta = parameters.get("tta", "none")
    if tta not in ("none", "flips", "dihedral"):
        raise DataError("the parameter tta must be none, flips or dihedral")
    request = content.get("id", "")
    if not isinstance(request, str) or len(request) > 256:
        raise DataError("id must be a string of at most 256 characters")
    return InferRequest(request, images, _wanted(content, bool(parameters.get("binary_data_output"))), tta)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def _wanted(content: Mapping[str, Any], binary: bool) -> dict[str, bool]:
    outputs = content.get("outputs")
    if outputs is None or outputs == []:
        return dict.fromkeys(OUTPUTS, binary)
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise DataError("outputs must be a list of objects")
    wanted = {}
    for output in outputs:
        name, parameters = output.get("name"), output.get("parameters", {})
        if name not in OUTPUTS:
            raise DataError(f"there is no output {str(name)[:60]!r}; there are {', '.join(OUTPUTS)}")
        if not isinstance(parameters, dict):
            raise DataError(f"the parameters of {name} must be an object")
        if "classification" in parameters:
            raise DataError("the classification extension is not offered")
        wanted[name] = bool(parameters.get("binary_data", binary))
    return wanted


def _tensor(
    tensor: Mapping[str, Any], rest: bytes, given: InputSpec, most_pixels: int, longest: int
) -> tuple[np.ndarray, int]:
    """The images, and how many bytes after the JSON they took."""
    if tensor.get("name") != "image":
        raise DataError(f"there is no input {str(tensor.get('name'))[:60]!r}; the model's is image")
    kind = tensor.get("datatype")
    if kind not in ("FP32", "UINT8"):
        raise DataError("image must be FP32 in [0, 1], or UINT8 from 0 to 255")
    if kind == "UINT8" and given.intensity.rule != "byte":
        raise DataError(f"image must be FP32 in [0, 1]: intensities are scaled by the rule {given.intensity.rule}")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or len(shape) != 4 or not all(type(n) is int and 0 < n < 1 << 24 for n in shape):
        raise DataError("the shape of image must be four positive numbers: images, channels, height, width")
    if shape[0] > _LARGEST_BATCH:
        raise DataError(f"at most {_LARGEST_BATCH} images are taken in one request")
    if shape[1] != given.channels:
        raise DataError(f"the model takes images of {given.channels} channels, this request has {shape[1]}")
    if shape[0] * shape[2] * shape[3] > most_pixels:
        raise DataError(f"a request may have {most_pixels:,} pixels")
    if max(shape[2:]) > longest:
        raise DataError(f"images of up to {longest:,} pixels along a side are taken")
    count = math.prod(shape)
    dtype = np.dtype("<f4" if kind == "FP32" else "u1")
    parameters = tensor.get("parameters", {})
    if not isinstance(parameters, dict):
        raise DataError("the parameters of image must be an object")
    size = parameters.get("binary_data_size")
    if size is not None:
        if type(size) is not int or size != count * dtype.itemsize or size > len(rest):
            raise DataError(
                f"binary_data_size must be {count * dtype.itemsize} for this shape, and so many bytes follow"
            )
        values = np.frombuffer(rest, dtype, count)
    else:
        size = 0
        values = _listed(tensor.get("data"), count, dtype)
    if kind == "UINT8":
        scaled: np.ndarray = np.divide(values, np.float32(255), dtype=np.float32)
    else:
        scaled = values.astype(np.float32)
        if not np.isfinite(scaled).all() or scaled.min() < 0 or scaled.max() > 1:
            raise DataError("image has values that are NaN, infinite or not from 0 to 1")
    return scaled.reshape(shape), size


def _listed(data: Any, count: int, dtype: np.dtype[Any]) -> np.ndarray:
    """Numbers in JSON, flat or nested as the shape is."""
    if not isinstance(data, list):
        raise DataError("image needs data, a list of numbers, or binary_data_size")
    try:
        values = np.array(data, dtype=np.float64).ravel()
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DataError("the data of image are no numbers, or not nested evenly") from error
    if len(values) != count:
        raise DataError(f"the shape of image says {count} numbers, but there are {len(values)}")
    if dtype == np.uint8 and ((values < 0) | (values > 255) | (values != np.floor(values))).any():
        raise DataError("UINT8 data must be whole numbers from 0 to 255")
    return values


def check_listed(request: InferRequest, manifest: Manifest) -> None:
    """Checks, before anything is computed, that the answer is not too large for JSON.

    Raises:
        DataError: it is, and the outputs have to be asked for as binary.
    """
    images, _, height, width = request.images.shape
    channels = manifest.output.channels
    each = {"probability": channels, "learners": (manifest.output.learners + 1) * channels, "mask": 1}
    listed = sum(each.get(name, 0) for name, binary in request.outputs.items() if not binary)
    if listed * images * height * width > _MOST_LISTED:
        raise DataError(
            f"the answer would have more than {_MOST_LISTED:,} numbers as JSON; ask for binary_data, or fewer outputs"
        )


def infer_response(
    manifest: Manifest, sha256: str, request: InferRequest, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, int | None]:
    """Writes the answer.

    Args:
        manifest: of the model.
        sha256: of the model.
        request: what was asked.
        outputs: all of them, by name.

    Returns:
        tuple: the body, and the length of its JSON where binary tensors follow.
    """
    described: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, binary in request.outputs.items():
        values = np.ascontiguousarray(outputs[name])
        entry: dict[str, Any] = {"name": name, "datatype": _TYPES[values.dtype], "shape": list(values.shape)}
        if binary:
            parts.append(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
            entry["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            entry["data"] = values.ravel().tolist()
        described.append(entry)
    content: dict[str, Any] = {"model_name": manifest.name, "model_version": sha256[:16], "outputs": described}
    content["parameters"] = {"refused": bool(outputs["refused"].any())}
    if request.id:
        content["id"] = request.id
    head = json.dumps(content).encode()
    return (head + b"".join(parts), len(head)) if parts else (head, None)


def stacked(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The outputs of single images as a batch; of one image without a copy."""
    if len(outputs) == 1:
        return {name: np.asarray(values)[None] for name, values in outputs[0].items()}
    return {name: np.stack([output[name] for output in outputs]) for name in outputs[0]}
