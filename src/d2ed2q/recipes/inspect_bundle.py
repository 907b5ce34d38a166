"""What a bundle says of itself, and whether it still does what it did when it was written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from d2ed2q.deploy import Predictor, read_bundle

__all__ = ["inspect_bundle"]


def inspect_bundle(path: Path, engine: str = "auto") -> dict[str, Any]:
    """Reads a bundle, checks every byte, and runs its sample.

    Returns:
        dict: ``path``, ``size`` in bytes, ``sha256``, ``one_float_learner`` (bytes of one learner's parameters in
        float32), ``self_test`` (engine, version, largest and mean difference, share far away, passed), ``card``
        (Markdown), and the ``manifest``.

    Raises:
        BundleError: the bundle is not sound.
        MissingExtraError: no engine is installed.
    """
    bundle = read_bundle(path)
    predictor = Predictor(bundle, engine)
    test = predictor.self_test()
    return {
        "path": str(path),
        "size": bundle.size,
        "sha256": bundle.sha256,
        "one_float_learner": 4 * bundle.manifest.weights.learner_parameters,
        "self_test": {
            "engine": predictor.engine.name,
            "version": predictor.engine.version,
            "largest": test.largest,
            "mean": test.mean,
            "far": test.far,
            "passed": test.passed,
        },
        "card": _printable(bundle.parts["model_card.md"].decode(errors="replace")),
        "manifest": dataclasses.asdict(bundle.manifest),
    }


def _printable(text: str) -> str:
    """Without characters that move a terminal's cursor or change its title."""
    return "".join(letter for letter in text if letter.isprintable() or letter == "\n")
