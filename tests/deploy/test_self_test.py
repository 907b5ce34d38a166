"""What a bundle's sample forgives, and what it finds broken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tests.deploy.conftest import Exported

from d2ed2q.deploy import Predictor
from d2ed2q.deploy.predictor import SelfTest

BROKEN: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "too faint": lambda found: found * 0.8,
    "empty": lambda found: found * 0,
    "no numbers": lambda found: found * np.nan,
    "moved": lambda found: np.roll(found, 3, axis=-1),
}


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_the_sample_is_a_self_test(engine: str, exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(exported.path, engine)
    assert predictor.self_test().passed
    run = predictor.engine.run
    for what, broken in BROKEN.items():
        monkeypatch.setattr(predictor.engine, "run", lambda x, broken=broken: broken(run(x)))
        assert not predictor.self_test().passed, what


def test_single_pixels_are_forgiven_and_nothing_else() -> None:
    stored = np.tile(np.array([0.1, 0.9], np.float32), (2, 1, 50, 25))  # a standard deviation of 0.4
    single, many = stored.copy(), stored.copy()
    single[0, 0, :2] += 0.5
    many[0, 0, :6] += 0.15
    assert SelfTest(single, stored).passed
    assert not SelfTest(many, stored).passed, "6 % of them"
    assert SelfTest(stored + np.float32(0.03), stored).passed
    assert not SelfTest(stored + np.float32(0.035), stored).passed
    flat = np.full_like(stored, 0.5)
    assert SelfTest(flat + np.float32(0.005), flat).passed
    assert not SelfTest(flat + np.float32(0.007), flat).passed
