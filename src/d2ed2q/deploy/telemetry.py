"""A model that looks at patients never calls home."""

from __future__ import annotations

import sys

__all__ = ["without_telemetry"]


def without_telemetry() -> None:
    """Keeps OpenVINO and NNCF from loading their usage telemetry; call before either is imported.

    Both take a module that cannot be imported as a sign not to send anything.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
