"""What the OpenAPI page says of routes: their answers, and bodies that they read themselves, byte by byte."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["EVERYWHERE", "IMAGE", "TENSORS", "announced"]

EVERYWHERE: dict[int | str, dict[str, Any]] = {401: {}, 403: {}, 413: {}, 421: {}, 429: {}}
"""Answers of any route: no token, another site's page, too large, by another name, too many."""

_BYTES = {"schema": {"type": "string", "format": "binary"}}
_PARTS = {"id": {"type": "string"}, "inputs": {"type": "array"}, "outputs": {"type": "array"}}

IMAGE = dict.fromkeys(
    ("image/png", "image/jpeg", "image/tiff", "image/bmp", "application/dicom", "application/octet-stream"), _BYTES
)
"""An image file, by its media type."""

TENSORS: Mapping[str, Any] = {
    "application/json": {"schema": {"type": "object", "required": ["inputs"], "properties": _PARTS}},
    "application/octet-stream": _BYTES,
}
"""A request of the Open Inference Protocol, with tensors in JSON or after it."""


def announced(tag: str, *codes: int, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a route's decorator is told for the page.

    Args:
        tag: heading that the route stands under.
        codes: its answers besides 200 and those of all routes.
        body: what it reads, by media type.
    """
    told: dict[str, Any] = {"tags": [tag], "responses": {code: {} for code in codes}}
    return told if body is None else told | {"openapi_extra": {"requestBody": {"required": True, "content": body}}}
