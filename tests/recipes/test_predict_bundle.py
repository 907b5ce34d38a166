from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from PIL import Image

from d2ed2q.cli import main
from d2ed2q.deploy import Predictor
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.errors import ConfigError, DataError, RunFolderError
from d2ed2q.recipes import predict as predict_module
from d2ed2q.recipes.predict import LOG, predict
from d2ed2q.recipes.predict_files import Input, find_inputs, write_results
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import PredictSettings


@pytest.fixture
def photos(phantoms: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index, source in enumerate(sorted((phantoms / "test" / "images").iterdir())):
        with Image.open(source) as picture:
            picture.crop((0, 0, 96 - 7 * index, 90)).save(folder / f"photo{index}.png")
    return folder


def test_bundle_and_run_give_nearly_the_same_masks(
    bundle: Path, trained: RunFolder, photos: Path, tmp_path: Path
) -> None:
    kept: dict[str, list[np.ndarray]] = {}
    for name, model in (("bundle", bundle), ("run", trained.path)):
        found = predict(PredictSettings(model=model, inputs=(photos,), out=tmp_path / name))
        assert not found.failed
        kept[name] = [np.asarray(Image.open(path)) > 0 for path in found.masks]
    agreement = [np.mean(one == other) for one, other in zip(kept["bundle"], kept["run"], strict=True)]
    # A network of three epochs is undecided about most pixels; a trained one agrees on nearly all of them.
    assert min(agreement) > 0.9


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime", "torch"])
def test_every_engine_writes_the_same_files(engine: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / engine
    found = predict(PredictSettings(model=bundle, inputs=(photos,), out=out, engine=engine))  # type: ignore[arg-type]
    kinds = ("mask", "probability", "uncertainty", "overlay")
    assert {path.name for path in out.glob("*.png")} == {f"photo{i}_{kind}.png" for i in range(3) for kind in kinds}
    assert [record["classes"][0] + record["classes"][1] for record in found.images] == [96 * 90, 89 * 90, 82 * 90]


def test_a_call_goes_on_where_the_last_one_stopped(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out")
    real = write_results
    calls = []

    def stopped(folder: Path, item: Input, *rest: Any) -> None:
        calls.append(item.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(folder, item, *rest)

    monkeypatch.setattr(predict_module, "write_results", stopped)
    with pytest.raises(KeyboardInterrupt):
        predict(settings)
    with open(settings.out / LOG, "ab") as log:
        log.write(b'{"image": "cut sho')  # as a kill leaves it
    found = predict(settings)
    assert calls == ["photo0", "photo1", "photo1", "photo2"]
    assert (len(found.masks), found.skipped) == (3, 1)
    (photos / "photo0.png").write_bytes((photos / "photo1.png").read_bytes())  # another image of the same name
    (settings.out / "photo2_mask.png").unlink()
    found = predict(settings)
    assert found.skipped == 1
    assert calls[4:] == ["photo0", "photo2"]
    assert predict(settings).skipped == 3


def test_other_settings_do_not_mix_in_one_folder(bundle: Path, photos: Path, tmp_path: Path) -> None:
    first = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out")
    predict(first)
    other = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out", tta="flips")
    with pytest.raises(RunFolderError, match=r"with other settings \(tta\)"):
        predict(other)
    again = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out", tta="flips", overwrite=True)
    assert predict(again).skipped == 0
    assert predict(other).skipped == 3


def test_one_bad_image_is_reported_and_the_others_are_done(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photos / "photo1.png"
    good = bad.read_bytes()
    bad.write_bytes(good[: len(good) // 2])
    Image.fromarray(np.zeros((9, 9), np.uint16)).save(photos / "deep.png")
    arguments = ["predict", str(bundle), str(photos), "--out", str(tmp_path / "out"), "--json"]
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    summary = json.loads(out)
    assert (summary["done"], summary["failed"], summary["skipped"]) == (2, 2, 0)
    errors = {Path(record["image"]).name: record["error"] for record in summary["images"] if "error" in record}
    assert set(errors) == {"photo1.png", "deep.png"}
    assert "truncated" in errors["photo1.png"]
    assert "2 of 4 images could not be segmented" in err
    assert "Traceback" not in err
    assert not (tmp_path / "out" / "photo1_mask.png").exists()
    bad.write_bytes(good)
    (photos / "deep.png").unlink()
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["done"], summary["failed"], summary["skipped"]) == (3, 0, 2)


def test_patterns_are_taken_and_must_match(bundle: Path, photos: Path, tmp_path: Path) -> None:
    pattern = photos / "photo[01].*"
    assert len(predict(PredictSettings(model=bundle, inputs=(pattern,), out=tmp_path / "out")).masks) == 2
    with pytest.raises(DataError, match="nothing that matches it"):
        predict(PredictSettings(model=bundle, inputs=(photos / "*.jpeg",), out=tmp_path / "other"))


def test_options_that_do_not_fit_are_refused(bundle: Path, trained: RunFolder, photos: Path, tmp_path: Path) -> None:
    make: Callable[..., PredictSettings] = PredictSettings
    for settings, message in (
        (make(model=bundle, inputs=(photos,), out=tmp_path / "o", full_precision=True), "pass its run folder"),
        (make(model=bundle, inputs=(photos,), out=tmp_path / "a", window=0), "windows must be at least"),
        (make(model=trained.path, inputs=(photos,), out=tmp_path / "b", window=0), "windows must be at least"),
        (make(model=trained.path, inputs=(photos,), out=tmp_path / "o", window=2), "at least 4 pixels"),
        (make(model=trained.path, inputs=(photos,), out=tmp_path / "o", engine="openvino"), "export it"),
    ):
        with pytest.raises(ConfigError, match=message):
            predict(settings)
    with pytest.raises(ConfigError, match="from 1 to 1024"):
        make(model=bundle, inputs=(photos,), out=tmp_path / "o", threads=0)
    assert not (tmp_path / "o").exists()


def test_no_image_gets_the_results_of_another(bundle: Path, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "photo0.png").write_bytes((photos / "photo1.png").read_bytes())
    first = PredictSettings(model=bundle, inputs=(photos / "photo0.png",), out=tmp_path / "out")
    second = PredictSettings(model=bundle, inputs=(other,), out=tmp_path / "out")
    mask = predict(first).masks[0].read_bytes()
    with pytest.raises(DataError, match="would have the same names"):
        predict(second)
    assert predict(first).masks[0].read_bytes() == mask


def test_overwriting_segments_anew(bundle: Path, photos: Path, tmp_path: Path) -> None:
    settings = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out")
    masks = [path.read_bytes() for path in predict(settings).masks]
    (settings.out / "photo0_mask.png").write_bytes(b"junk")
    again = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out", overwrite=True)
    assert [path.read_bytes() for path in predict(again).masks] == masks
    (settings.out / "photo1_probability.png").unlink()
    assert predict(settings).skipped == 2
    assert (settings.out / "photo1_probability.png").is_file()


def test_results_never_replace_inputs(bundle: Path, photos: Path) -> None:
    precious = photos / "photo0_mask.png"
    precious.write_bytes((photos / "photo1.png").read_bytes())
    before = precious.read_bytes()
    with pytest.raises(DataError, match="lies in the output folder"):
        predict(PredictSettings(model=bundle, inputs=(photos,), out=photos, overwrite=True))
    assert precious.read_bytes() == before


@pytest.mark.parametrize("line", ["5", "null", '{"mask": "x.png"}', "{"])
def test_a_damaged_log_is_named(line: str, bundle: Path, photos: Path, tmp_path: Path) -> None:
    settings = PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out")
    predict(settings)
    with open(settings.out / LOG, "a", encoding="utf-8") as log:
        log.write(line + "\n")
    with pytest.raises(RunFolderError, match=r"predictions\.jsonl is damaged"):
        predict(settings)


def test_one_image_that_is_too_large_does_not_end_the_rest(
    bundle: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Predictor.raw

    def raw(self: Predictor, x: np.ndarray) -> np.ndarray:
        if x.shape[-1] == 89:
            raise MemoryError
        return real(self, x)

    monkeypatch.setattr(Predictor, "raw", raw)
    found = predict(PredictSettings(model=bundle, inputs=(photos,), out=tmp_path / "out"))
    assert [path.name for path in found.failed] == ["photo1.png"]
    assert len(found.masks) == 2


def test_bad_bundles_end_with_one_line(
    bundle: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut = tmp_path / "cut.d2q"
    cut.write_bytes(bundle.read_bytes()[:-9])
    for verb in (
        ["predict", str(cut), str(photos), "--out", str(tmp_path / "o")],
        ["inspect", str(cut)],
        ["bench", str(cut)],
    ):
        assert main(verb) == 2
        error = capsys.readouterr().err
        assert "cut off or was changed" in error
        assert len(error.strip().splitlines()) == 1
    assert main(["inspect", str(tmp_path / "none.d2q")]) == 2
    assert "there is no bundle" in capsys.readouterr().err


def test_windows_of_a_run_are_those_of_its_bundle(
    bundle: Path, trained: RunFolder, photos: Path, tmp_path: Path
) -> None:
    masks = []
    for name, model in (("bundle", bundle), ("run", trained.path)):
        found = predict(PredictSettings(model=model, inputs=(photos,), out=tmp_path / name, window=64))
        masks.append(np.asarray(Image.open(found.masks[0])) > 0)
    assert np.mean(masks[0] == masks[1]) > 0.9


def _pictures(folder: Path, names: list[str], grey: bool) -> InputSpec:
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.fromarray(np.zeros((8, 8) if grey else (8, 8, 3), np.uint8)).save(folder / f"{name}.png")
    return InputSpec(3, 4, 16, None)


@pytest.mark.parametrize("numbers", [[1, 2], [0, 1, 2], [0], [7, 8, 9]])
def test_a_cameras_numbers_are_no_channels(numbers: list[int], tmp_path: Path) -> None:
    names = [f"IMG_{number:04d}" for number in numbers]
    given = _pictures(tmp_path, names, grey=False)
    assert [item.name for item in find_inputs([tmp_path], given)] == names


def test_pictures_of_one_name_and_number_are_not_one(tmp_path: Path) -> None:
    given = _pictures(tmp_path, ["IMG_0001"], grey=False)
    (tmp_path / "IMG_0001.jpg").write_bytes((tmp_path / "IMG_0001.png").read_bytes())
    with pytest.raises(DataError, match=r"IMG_0001\.jpg and .*IMG_0001\.png have the same name and number"):
        find_inputs([tmp_path], given)


def test_grey_pictures_are_the_channels_of_one_image_where_all_of_them_are_there(tmp_path: Path) -> None:
    given = _pictures(tmp_path, ["case_0000", "case_0001", "case_0002"], grey=True)
    assert [(item.name, len(item.files)) for item in find_inputs([tmp_path], given)] == [("case", 3)]
    (tmp_path / "case_0000.png").unlink()
    assert [item.name for item in find_inputs([tmp_path], given)] == ["case_0001", "case_0002"]
    with pytest.raises(DataError, match="case_0000 is missing: the model takes images of 2 channels"):
        find_inputs([tmp_path], replace(given, channels=2))


def test_a_folder_gives_volumes_of_a_single_slice_to_a_model_of_pictures(tmp_path: Path) -> None:
    given = _pictures(tmp_path, ["photo"], grey=False)
    nibabel.save(nibabel.Nifti1Image(np.zeros((8, 8, 1), np.uint8), np.eye(4)), tmp_path / "slice.nii.gz")
    assert [item.name for item in find_inputs([tmp_path], given)] == ["slice", "photo"]


def test_too_little_memory_is_an_image_left_out(
    trained: RunFolder, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: not enough memory")

    monkeypatch.setattr(predict_module, "predict_image", full)
    found = predict(PredictSettings(model=trained.path, inputs=(photos / "photo0.png",), out=tmp_path / "out"))
    assert "cut it into windows" in next(iter(found.failed.values()))
