from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.deploy.conftest import Exported
from torch.nn import functional as F

from d2ed2q.data import Resolution, read_image, resize_linear
from d2ed2q.deploy import Predictor, available_engines, make_engine
from d2ed2q.deploy import engines as engines_module
from d2ed2q.deploy.dihedral import AUGMENTATIONS, averaged
from d2ed2q.deploy.prediction import calibrated, calibrated_threshold, make_prediction
from d2ed2q.deploy.tiling import in_windows, window_starts
from d2ed2q.errors import BundleError, ConfigError, DataError, MissingExtraError
from d2ed2q.recipes.inference import predict_probabilities


@pytest.mark.parametrize("size", [(7, 5), (64, 64), (30, 90), (1, 1)])
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("most_weights", [1 << 22, 0])
def test_resizing_is_pytorchs(
    size: tuple[int, int], antialias: bool, most_weights: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2ed2q.data.resampling._MOST_WEIGHTS", most_weights)  # 0: as long axes are resized
    array = np.random.default_rng(0).random((2, 3, 41, 33), np.float32)
    wanted = F.interpolate(
        torch.from_numpy(array), size, mode="bilinear", align_corners=False, antialias=antialias
    ).numpy()
    np.testing.assert_allclose(resize_linear(array, size, antialias), wanted, atol=2e-6)


@pytest.mark.parametrize(("dims", "counts"), [(2, (1, 4, 8)), (3, (1, 8, 16))])
def test_transforms_are_all_symmetries_and_undo_themselves(dims: int, counts: tuple[int, ...]) -> None:
    image = np.arange(5 * 12.0).reshape((5, 3, 4) if dims == 3 else (5 * 3, 4))[None]
    for tta, count in zip(AUGMENTATIONS, counts, strict=True):
        seen: list[np.ndarray] = []

        def run(part: np.ndarray, seen: list[np.ndarray] = seen) -> np.ndarray:
            seen.append(part)
            return part

        np.testing.assert_array_equal(averaged(run, image, tta, dims), image)
        assert len({(part.shape, part.tobytes()) for part in seen}) == len(seen) == count


@pytest.mark.parametrize("tta", list(AUGMENTATIONS))
def test_prediction_is_pytorchs_but_for_int8(tta: str, exported: Exported, image: np.ndarray) -> None:
    predictor = Predictor(exported.path, "torch")
    predictor.engine._float = True  # type: ignore[attr-defined]  # the few-bit network itself
    wanted = predict_probabilities(
        exported.ensemble, torch.from_numpy(image).permute(2, 0, 1).float() / 255, Resolution(), tta
    ).numpy()
    found = predictor.probabilities(image, tta)
    # The network pads an odd-sized image after it was turned, here too: the same pixels on the same sides.
    np.testing.assert_allclose(found, wanted, atol=3e-6)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_every_engine_gives_a_whole_prediction(engine: str, exported: Exported, image: np.ndarray) -> None:
    prediction = Predictor(exported.path, engine, threads=1)(image)
    assert prediction.learners.shape == (3, 1, *image.shape[:2])
    assert prediction.mask.shape == image.shape[:2]
    assert ((prediction.probability[0] > 0.4) == (prediction.mask == 1)).all()
    assert 0 <= prediction.uncertainty.min() <= prediction.uncertainty.max() <= 1


def test_engines_agree_on_real_photographs(exported: Exported, real_data: Callable[[str], Path]) -> None:
    files = sorted((real_data("DRIVE") / "test" / "images").iterdir())[:2]
    for file in files:
        image = np.ascontiguousarray(read_image(file)[150:406, 150:406])
        found = {name: Predictor(exported.path, name)(image) for name in available_engines()}
        reference = found["torch"]
        for prediction in found.values():
            difference = np.abs(prediction.learners - reference.learners)
            assert difference.mean() < 2e-3
            assert difference.max() < 0.06
            sure = np.abs(reference.probability[0] - 0.4) > 0.06
            assert np.array_equal(prediction.mask[sure], reference.mask[sure])


def test_temperature_moves_probabilities_and_not_the_ranking(
    exported: Exported, calibrated_path: Path, image: np.ndarray
) -> None:
    plain = Predictor(exported.path)(image, "flips").probability
    hot = Predictor(calibrated_path)(image).probability  # flips by default
    np.testing.assert_allclose(np.log(hot / (1 - hot)), np.log(plain / (1 - plain)) / 2, atol=1e-3)
    threshold = calibrated_threshold(0.4, 2.0)
    assert ((hot > threshold) == (plain > 0.4)).mean() > 0.9999
    assert (
        Predictor(calibrated_path)(image).uncertainty.mean()
        > Predictor(exported.path)(image, "flips").uncertainty.mean()
    )


@pytest.mark.parametrize(("temperature", "threshold"), [(0.2, 0.98), (0.2, 0.995), (0.3, 0.999), (5.0, 0.001)])
def test_masks_stay_the_same_at_the_edge(temperature: float, threshold: float) -> None:
    """There float32 cannot tell a calibrated probability from 1."""
    learners = np.linspace(0, 1, 40_000, dtype=np.float32).reshape(1, 1, 200, 200).repeat(3, 0)
    hot = make_prediction(learners, "meta", calibrated_threshold(threshold, temperature), temperature=temperature)
    assert abs(int(hot.mask.sum()) - int((learners[0] > threshold).sum())) <= 1
    assert hot.probability.dtype == np.float32


@pytest.mark.parametrize(
    ("raised", "expected", "message"),
    [
        (MemoryError(), DataError, "do not fit into the memory"),
        (RuntimeError("bad allocation"), DataError, "--window 1024"),
        (
            RuntimeError("Check 'x' failed\nat y"),
            BundleError,
            "cannot be run in openvino on 71×90 pixels: Check 'x' failed$",
        ),
    ],
)
def test_engines_that_fail_are_one_sentence(
    raised: Exception,
    expected: type[Exception],
    message: str,
    exported: Exported,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    predictor = Predictor(exported.path)

    def run(x: np.ndarray) -> np.ndarray:
        raise raised

    monkeypatch.setattr(predictor.engine, "run", run)
    with pytest.raises(expected, match=message):
        predictor(image)
    monkeypatch.setattr(predictor.engine, "run", lambda x: np.zeros((4, 4), np.float32))
    with pytest.raises(BundleError, match="not what its manifest says"):
        predictor(image)


@pytest.mark.parametrize("view", ["ensemble", "meta", "base_mean", "base_2"])
def test_a_view_is_calibrated_as_a_whole(view: str) -> None:
    """The mean of calibrated learners is another thing, and its threshold lies elsewhere."""
    learners = np.random.default_rng(0).random((3, 1, 40, 50), np.float32)
    plain = make_prediction(learners, view, 0.3)
    hot = make_prediction(learners, view, calibrated_threshold(0.3, 0.4), temperature=0.4)
    assert (plain.mask == hot.mask).mean() > 0.999
    assert np.array_equal(plain.learners, hot.learners)


def test_calibration_of_several_classes_is_softmax_of_scaled_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(4, 50)).astype(np.float32)
    before = np.exp(logits) / np.exp(logits).sum(0)
    after = np.exp(logits / 3) / np.exp(logits / 3).sum(0)
    np.testing.assert_allclose(calibrated(before, 3.0), after, rtol=1e-4)
    assert calibrated(before, 1.0) is before


@pytest.mark.parametrize(("length", "window", "overlap"), [(10, 10, 0.5), (100, 32, 0.25), (33, 32, 0.25), (5, 9, 0.1)])
def test_windows_cover_everything_and_overlap(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - window)
    for one, other in pairwise(starts):
        assert other - one <= max(1, int(window * (1 - overlap)))
        assert other > one


def test_windows_of_a_pointwise_function_are_the_whole() -> None:
    image = np.random.default_rng(0).random((3, 70, 50), np.float32)
    found = in_windows(lambda part: np.stack([part * 2, part + 1]), image, (32, 32))
    np.testing.assert_allclose(found, np.stack([image * 2, image + 1]), rtol=1e-5)


def test_windows_give_nearly_what_the_whole_image_gives(exported: Exported, image: np.ndarray) -> None:
    predictor = Predictor(exported.path)
    whole, cut = predictor.probabilities(image), predictor.probabilities(image, window=48)
    assert np.abs(whole - cut).mean() < 0.02
    with pytest.raises(ConfigError, match="at least 4"):
        predictor.probabilities(image, window=2)


def test_large_images_are_cut_by_themselves(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    predictor = Predictor(exported.path)

    def raw(x: np.ndarray) -> np.ndarray:
        seen.append(x.shape)
        return np.zeros((3, 1, *x.shape[-2:]), np.float32)

    monkeypatch.setattr(predictor, "raw", raw)
    predictor.probabilities(np.zeros((1700, 1600, 3), np.uint8))
    assert set(seen) == {(3, 1024, 1024)}


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 200)])
def test_tiny_and_odd_images_are_padded(size: tuple[int, int], exported: Exported) -> None:
    prediction = Predictor(exported.path)(np.full((*size, 3), 90, np.uint8), "dihedral")
    assert prediction.mask.shape == size
    assert np.isfinite(prediction.learners).all()


def test_grey_images_are_taken_as_colour_and_others_are_refused(exported: Exported) -> None:
    predictor = Predictor(exported.path)
    grey = np.random.default_rng(0).integers(0, 255, (20, 20, 1), np.uint8)
    assert np.array_equal(predictor(grey).mask, predictor(np.repeat(grey, 3, -1)).mask)
    for bad, message in (
        (np.zeros((8, 8, 2), np.uint8), "3 channels, this one has 2"),
        (np.zeros((8, 8, 3), np.float32), "uint8 of shape"),
        (np.zeros((8, 8), np.uint8), "uint8 of shape"),
        (np.zeros((0, 8, 3), np.uint8), "uint8 of shape"),
    ):
        with pytest.raises(DataError, match=message):
            predictor(bad)
    with pytest.raises(ConfigError, match="dihedral"):
        predictor(grey, "octahedral")


def test_graphs_are_kept_for_so_many_sizes_and_pixels(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines_module, "_SHAPES_KEPT", 3)
    monkeypatch.setattr(engines_module, "_PIXELS_KEPT", 5_000)
    engine = make_engine("openvino", exported.bundle.model, threads=1)
    compiled = vars(engine)["_compiled"]

    def kept() -> list[int]:
        return [height * width for _, _, height, width in compiled]

    images = [np.random.default_rng(0).random((1, 3, size, 32), np.float32) for size in range(32, 96, 16)]
    first = engine.run(images[0])
    for image in images:
        engine.run(image)
        assert kept()[-1] == image[0, 0].size
        assert len(kept()) <= 3
        assert sum(kept()) <= 5_000
    huge = np.zeros((1, 3, 80, 80), np.float32)
    engine.run(huge)
    assert kept() == [80 * 80], "one alone may be larger"
    np.testing.assert_array_equal(engine.run(images[0]), first)


def test_engines_that_are_missing_are_named(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_engines() == ["openvino", "onnxruntime", "torch"]
    with pytest.raises(ConfigError, match="unknown engine 'tensorrt'"):
        make_engine("tensorrt", exported.bundle.model)
    monkeypatch.setattr(engines_module, "_installed", lambda package: package == "onnxruntime")
    assert make_engine("auto", exported.bundle.model).name == "onnxruntime"
    with pytest.raises(MissingExtraError, match=r"openvino needs openvino.*pip install 'd2ed2q\[runtime\]'"):
        make_engine("openvino", exported.bundle.model)
    monkeypatch.setattr(engines_module, "_installed", lambda package: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'd2ed2q\[runtime\]'"):
        make_engine("auto", exported.bundle.model)


def test_an_engine_serves_several_threads(exported: Exported, image: np.ndarray) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for name in ("openvino", "onnxruntime"):
        predictor = Predictor(exported.path, name, streams=2)
        alone = [predictor(part).learners for part in (image, image[:40], image[:, :33])]
        with ThreadPoolExecutor(4) as pool:
            together = [found.learners for found in pool.map(predictor, [image, image[:40], image[:, :33]] * 4)]
        for one, other in zip(alone * 4, together, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-6)


def test_engines_that_come_and_go_leave_ctrl_c_alone(exported: Exported) -> None:
    """In a process of its own, because it may die of it."""
    script = """
import os, signal, sys
import numpy as np
from d2ed2q.deploy import make_engine, read_bundle
from pathlib import Path

model = read_bundle(Path(sys.argv[1])).model
image = np.zeros((1, 3, 32, 32), np.float32)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started this may ignore it
engines = [make_engine("openvino", model) for _ in range(3)]
for engine in engines:
    engine.run(image)
del engine
while engines:
    del engines[0]  # the first to come is the first to go
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("interrupted")
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(exported.path)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_processors_without_vnni_compute_in_float(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their sums of pairs of products saturate. No test can take the instructions away, but the switch can be seen."""
    image = np.random.default_rng(0).random((1, 3, 32, 32), np.float32)
    usual = make_engine("openvino", exported.bundle.model).run(image)
    monkeypatch.setattr(engines_module, "_multiplies_int8_exactly", lambda: False)
    engine = make_engine("openvino", exported.bundle.model)
    np.testing.assert_allclose(engine.run(image), usual, atol=0.06)
    (compiled,) = engine._compiled.values()  # type: ignore[attr-defined]
    precisions = {
        str(node.get_rt_info()["runtimePrecision"].astype(str))
        for node in compiled.get_runtime_model().get_ops()
        if str(node.get_rt_info()["layerType"].astype(str)) == "Convolution"
    }
    assert precisions == {"f32"}
    np.testing.assert_allclose(make_engine("onnxruntime", exported.bundle.model).run(image), usual, atol=0.06)


def test_outside_the_region_everything_is_background() -> None:
    learners = np.full((3, 1, 4, 4), 0.9, np.float32)
    region = np.zeros((4, 4), bool)
    region[1:3, 1:3] = True
    prediction = make_prediction(learners, "ensemble", 0.5, region)
    assert np.array_equal(prediction.mask == 1, region)
    assert not prediction.uncertainty[~region].any()
    several = make_prediction(np.full((3, 3, 4, 4), 1 / 3, np.float32), "meta", 0.5, region)
    assert not several.mask[~region].any()
    assert not several.uncertainty[~region].any()


def test_averaging_turns_back() -> None:
    image = np.random.default_rng(0).random((2, 5, 7), np.float32)
    for tta in AUGMENTATIONS:
        np.testing.assert_allclose(averaged(lambda x: x, image, tta), image, atol=1e-6)
    ramp = np.zeros((1, 4, 6), np.float32)
    ramp[0, 0, 0] = 1
    spread = averaged(lambda x: np.roll(x, 1, -1), ramp, "dihedral")
    assert spread[0].sum() == pytest.approx(1)
    assert (spread[0] > 0).sum() == 4, "a shift to the right, in eight turned images, goes four ways"
