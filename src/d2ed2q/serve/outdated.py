"""Which results that a node keeps it would not give now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["is_outdated"]

_ROUNDED = 0.00005  # half of the last digit of the doubt that is kept


def is_outdated(state: str, summary: Mapping[str, Any], waits: bool, model: str, refuse: float | None) -> bool:
    """Whether a result is to be made anew.

    It has yet to be sent, but is another model's; or it is of the model that the node has, and its doubt lies on the
    other side of the bound that the node has now.

    Args:
        state: of the job, ``done`` or ``refused``.
        summary: of its result.
        waits: whether some of it waits to be sent.
        model: SHA-256 of the node's model.
        refuse: doubt above which the node refuses an image; None refuses none.
    """
    if summary.get("model_sha256") != model:
        return state == "done" and waits
    if refuse is None:
        return state == "refused"
    doubt = float(summary["doubt"])
    return (doubt > refuse) != (state == "refused") and abs(doubt - refuse) > _ROUNDED
