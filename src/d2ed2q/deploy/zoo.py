"""Models that come with the package, by name."""

from __future__ import annotations

import difflib
import re
from importlib.resources import as_file, files
from pathlib import Path

from d2ed2q.deploy.manifest import Manifest
from d2ed2q.errors import BundleError

__all__ = ["described", "model_path", "zoo"]

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def zoo() -> dict[str, Path]:
    """The bundles that are installed with the package, by name."""
    with as_file(files("d2ed2q") / "zoo") as folder:
        return {path.stem: path for path in sorted(folder.glob("*.d2q"))}


def model_path(given: Path) -> Path:
    """Where a model is that somebody names: a file or folder of their own, or else one of the zoo.

    Args:
        given: a path, or a name without any folder, such as ``retina-vessels``.

    Raises:
        BundleError: it looks like a name of the zoo, but there is none of it.
    """
    name = str(given)
    if given.exists() or not _NAME.fullmatch(name):
        return given
    known = zoo()
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known) or 'none'}"
    raise BundleError(f"there is no model at {given}, and none of that name comes with d2ed2q; {hint}")


def described(manifest: Manifest) -> dict[str, str]:
    """What a list of models says of one."""
    accuracy, output = manifest.accuracy, manifest.output
    return {
        "finds": ", ".join(output.classes[1:]),
        "trained on": str(manifest.provenance.get("dataset", "")),
        "learners": str(output.learners + 1),
        "bits": "–" if manifest.weights.bits is None else "/".join(map(str, sorted(set(manifest.weights.bits)))),
        "Dice on validation images": f"{accuracy.dice[1]:.3f}",
        "terms of its images": str(manifest.provenance.get("terms", "")),
    }
