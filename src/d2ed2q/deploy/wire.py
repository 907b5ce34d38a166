"""A look into an ONNX file without the onnx package: whether it wants data from other files.

Only tags and lengths of the protocol buffer are read (https://protobuf.dev/programming-guides/encoding), along the
fields of onnx.proto in which tensors can lie; weights themselves are stepped over.
"""

from __future__ import annotations

from collections.abc import Iterator

__all__ = ["has_external_data"]

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Of every kind of message, the fields that hold messages in which tensors can lie.
_FIELDS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_EXTERNAL_DATA, _DATA_LOCATION = 13, 14
_DEEPEST = 64


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of an ONNX model lies, or claims to lie, outside of it.

    Raises:
        ValueError: the bytes are no protocol buffer, or nested beyond reason.
    """
    return _any_external(memoryview(model), "model", 0)


def _any_external(message: memoryview, kind: str, depth: int) -> bool:
    if depth > _DEEPEST:
        raise ValueError("messages are nested too deeply")
    for field, wire_type, content in _fields(message):
        if kind == "tensor" and field in (_EXTERNAL_DATA, _DATA_LOCATION):
            if field == _EXTERNAL_DATA or wire_type != _VARINT or content != 0:
                return True
            continue
        inner = _FIELDS[kind].get(field)
        if inner is not None:
            if not isinstance(content, memoryview):
                raise ValueError(f"field {field} of a {kind} is no message")
            if _any_external(content, inner, depth + 1):
                return True
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int, int | memoryview]]:
    """Field number, wire type and content of every field."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        field, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            value, position = _varint(message, position)
            yield field, wire_type, value
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")
        if length > len(message) - position:
            raise ValueError("a field is longer than its message")
        yield field, wire_type, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise ValueError("it is cut off")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError("a number is too long")
