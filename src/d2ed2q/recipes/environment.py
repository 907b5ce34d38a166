"""What a result depends on besides settings and data."""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from d2ed2q.limits import cores_in_words, usable_cores

__all__ = ["environment", "hardware", "processor", "processor_features"]

_PACKAGES = (
    *("d2ed2q", "torch", "lightning-fabric", "monai", "numpy", "scipy", "scikit-image", "pillow", "safetensors"),
    *("openvino", "nncf", "onnx", "onnxruntime"),
)
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_bf16", "amx_int8")


def environment() -> dict[str, Any]:
    """Versions, machine, command, date, and the commit of the code where it runs from a checkout."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed as a package"
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "features": processor_features(),
        "cores": usable_cores(),
        "accelerator": _accelerator(),
        "packages": versions,
        "commit": _commit(),
    }


def hardware(environment: Mapping[str, Any]) -> str:
    """The machine of an :func:`environment` in words: ``AMD EPYC, 2 cores``."""
    name = environment.get("accelerator") or environment["processor"]
    return f"{name}, {cores_in_words(environment['cores'])}"


def _commit() -> str | None:
    """The checkout's commit, with a + where its files were changed since; None of an installed package."""
    here = Path(__file__)
    try:
        # Not of a checkout that somebody installed the package in.
        for command in (
            ["ls-files", "--error-unmatch", here.name],
            ["describe", "--always", "--abbrev=40", "--dirty=+"],
        ):
            done = subprocess.run(["git", *command], cwd=here.parent, capture_output=True, text=True, timeout=10)
            if done.returncode != 0:
                return None
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip()


def _accelerator() -> str | None:
    try:
        import torch
    except ModuleNotFoundError:
        return None
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def _cpuinfo(key: str) -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith(key):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return ""


def processor() -> str:
    """The processor's name."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def processor_features() -> list[str]:
    """What of the instruction sets that decide over speed the processor has, where the system tells."""
    flags = _cpuinfo("flags").split()
    return [feature for feature in _FEATURES if feature in flags]
