"""Code of a process in which PyTorch, and all that only training needs, is as if it were not installed."""

from __future__ import annotations

import textwrap

HEAVY = ("torch", "monai", "lightning_fabric", "matplotlib", "nncf", "onnx", "openvino_telemetry", "safetensors")
_MISSING = """
    import sys

    class Missing:
        # Importing any of these fails, as where they are not installed.

        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] in {heavy}:
                raise ModuleNotFoundError("No module named " + repr(name), name=name)

    sys.meta_path.insert(0, Missing())
"""


def without_pytorch(script: str) -> str:
    """The same script, indented or not, where none of these can be imported."""
    return textwrap.dedent(_MISSING).format(heavy=HEAVY) + textwrap.dedent(script)
