from __future__ import annotations

import contextlib
import json
import multiprocessing
import multiprocessing.process
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import CheckpointError, ConfigError, DataError, RunFolderError, StorageError
from d2ed2q.files import sha256_of
from d2ed2q.quantization import quantizable_weights
from d2ed2q.recipes import train as train_module
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.inspect_run import inspect_run
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import load_tensors, read_log

Make = Callable[..., TrainSettings]


def test_the_run_folder_is_complete(trained: RunFolder, phantoms: Path) -> None:
    for path in (
        trained.config,
        trained.environment,
        trained.data,
        trained.checkpoint,
        trained.metrics,
        trained.full_precision,
        trained.model,
        trained.card,
    ):
        assert path.is_file(), path
    assert list(trained.tensorboard.iterdir())
    assert not [path for path in trained.path.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".ckpt")]
    settings = settings_from(trained.config, TrainSettings)
    assert settings.data == phantoms
    assert settings.bits == (4,)
    data = json.loads(trained.data.read_text())
    assert {name: len(ids) for name, ids in data["splits"].items()} == {"train": 4, "validation": 1, "test": 3}
    assert len(data["sha256"]) == 8
    assert "torch" in json.loads(trained.environment.read_text())["packages"]


def test_phases_and_the_quantized_share_are_logged(trained: RunFolder) -> None:
    phases = [row for row in read_log(trained.metrics) if row["kind"] == "phase"]
    assert [row["phase"] for row in phases] == ["full_precision", *(f"quantization_{step}" for step in range(1, 5))]
    assert [row["frozen_fraction"] for row in phases[1:]] == pytest.approx([0.3, 0.6, 0.8, 1.0], abs=0.01)


def test_the_finished_weights_are_few_bit_and_the_full_precision_ones_are_not(trained: RunFolder) -> None:
    for weight in quantizable_weights(trained.load()):
        rows = weight.parameter.detach().movedim(weight.channel_axis, 0)
        assert max(len(torch.unique(row)) for row in rows) <= 15
    before = [weight.parameter for weight in quantizable_weights(trained.load(full_precision=True))]
    assert len(torch.unique(before[5].detach()[0])) > 100


def test_bits_per_learner_reach_their_learners(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, bits=(8, 2, 3)))
    facts = inspect_run(run.path)
    assert [facts["learners"][name]["bits"] for name in ("meta", "base_1", "base_2")] == [8, 2, 3]
    most = {name: row["distinct_per_channel"] for name, row in facts["learners"].items()}
    assert most["base_1"] <= 3
    assert 3 < most["base_2"] <= 7
    assert most["meta"] > 15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_seed_gives_the_same_run_twice(tmp_path: Path, small_settings: Make, precision: str) -> None:
    runs = [
        train(small_settings(tmp_path / name, epochs=1, seed=seed, precision=precision))
        for name, seed in (("a", 4), ("b", 4), ("c", 5))
    ]
    digests = [sha256_of(run.model) for run in runs]
    assert digests[0] == digests[1] != digests[2]


def test_without_quantization_the_model_stays_in_full_precision(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, quantize=False))
    card = run.read_card()
    assert card.bits is None
    assert card.codebook is None
    assert inspect_run(run.path)["bytes"]["ensemble_few_bit"] is None


def test_patients_are_never_on_both_sides(tmp_path: Path, small_settings: Make, phantoms: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    ids = sorted(path.stem for path in (data / "images").iterdir())
    rows = "".join(f"{id},{'one' if index < 3 else 'two'}\n" for index, id in enumerate(ids))
    tests = "".join(f"{path.stem},three\n" for path in (data / "test" / "images").iterdir())
    (data / "patients.csv").write_text("id,patient\n" + rows + tests)
    run = train(small_settings(tmp_path / "run", data=data, epochs=1, quantize=False))
    record = json.loads(run.data.read_text())
    sides = [{record["patients"][id] for id in record["splits"][name]} for name in ("train", "validation")]
    assert sides[0].isdisjoint(sides[1])


def _train_in_child(settings: TrainSettings) -> None:
    torch.set_num_threads(1)
    train(settings)


def _wait_for(child: multiprocessing.process.BaseProcess, path: Path, changes: int) -> None:
    """Waits until a file has been replaced so many times, or the child has ended."""
    seen: set[int] = {path.stat().st_mtime_ns} if path.exists() else set()
    wanted = len(seen) + changes
    while child.is_alive() and len(seen) < wanted:
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.stat().st_mtime_ns)
        time.sleep(0.001)


def test_kill_dash_nine_at_ten_moments_changes_no_bit(tmp_path: Path, small_settings: Make) -> None:
    def settings(out: Path, resume: bool = False) -> TrainSettings:
        return small_settings(out, epochs=8, epochs_q=3, checkpoint_seconds=0.0, resume=resume)

    expected = train(settings(tmp_path / "whole"))
    # A server that has imported everything: a child costs a fork, not ten seconds of imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["d2ed2q.recipes.train"])
    moments = random.Random(0)
    out = tmp_path / "killed"
    for kill in range(10):
        child = context.Process(target=_train_in_child, args=(settings(out, resume=kill > 0),))
        child.start()
        # The first kill comes as soon as there is a run, most likely before its first checkpoint; the others at a
        # random moment after one, two or three more checkpoints, of which there are more than forty.
        _wait_for(
            child, out / ("checkpoint.safetensors" if kill else "config.toml"), moments.randint(1, 3) if kill else 1
        )
        time.sleep(moments.uniform(0, 0.08))
        assert child.is_alive(), "the run ended before it could be killed"
        child.kill()
        child.join()
    last = context.Process(target=_train_in_child, args=(settings(out, resume=True),))
    last.start()
    last.join()
    assert last.exitcode == 0
    ours, theirs = load_tensors(out / "model.safetensors")[0], load_tensors(expected.model)[0]
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert sha256_of(out / "full_precision.safetensors") == sha256_of(expected.full_precision)
    hidden = {path.name for path in out.iterdir() if path.name.startswith(".")}
    assert hidden <= {".lock"}, "leftovers of the killed writes"


def test_an_output_folder_that_exists_is_refused(tmp_path: Path, small_settings: Make) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(RunFolderError, match="--resume, or choose another"):
        train(small_settings(tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "precious"


def test_what_cannot_be_resumed_is_refused(tmp_path: Path, small_settings: Make, trained: RunFolder) -> None:
    with pytest.raises(RunFolderError, match="no run to resume"):
        train(small_settings(tmp_path / "nothing", resume=True))
    with pytest.raises(RunFolderError, match="nothing to resume"):
        train(small_settings(trained.path, resume=True))


def test_a_resumed_run_keeps_its_settings(tmp_path: Path, small_settings: Make, trained: RunFolder) -> None:
    import shutil

    shutil.copytree(trained.path, tmp_path / "run")
    (tmp_path / "run" / "model.json").unlink()
    with pytest.raises(ConfigError, match=r"epochs is 7 here, but .* was begun with 3"):
        train(small_settings(tmp_path / "run", resume=True, epochs=7))
    train(small_settings(tmp_path / "run", resume=True))
    assert (tmp_path / "run" / "model.json").is_file()


def test_resuming_on_other_images_is_refused(
    tmp_path: Path, small_settings: Make, phantoms: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from d2ed2q.data import write_phantom_dataset

    def stop(*_: object) -> None:
        raise StorageError("stopped here")

    monkeypatch.setattr(train_module, "_finish", stop)
    short = {"epochs": 1, "quantize": False}
    with pytest.raises(StorageError):
        train(small_settings(tmp_path / "run", **short))
    monkeypatch.undo()
    write_phantom_dataset(tmp_path / "other", n_train=5, n_test=3, size=(96, 96), seed=2)
    with pytest.raises(RunFolderError, match="not those that"):
        train(small_settings(tmp_path / "run", data=tmp_path / "other", resume=True, **short))
    finished = train(small_settings(tmp_path / "run", resume=True, **short))
    assert finished.card.is_file()


def test_unknown_names_are_refused_before_anything_is_written(tmp_path: Path, small_settings: Make) -> None:
    for changes, message in (
        ({"backbone": "unet-ss"}, "unet-s"),
        ({"codebook": "geometrical"}, "geometric"),
        ({"dataset": "drove"}, "drive"),
        ({"bits": (9,)}, "from 2 to 8"),
        ({"bits": (1, 4, 4)}, "from 2 to 8"),
        ({"fractions": (0.5, 0.4)}, "add up to 1"),
        ({"device": "tpu"}, "auto, cpu or cuda"),
        ({"imagenet_weights": tmp_path / "none.pth"}, "no weights file"),
        ({"alpha": -1.0}, "alpha"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(small_settings(tmp_path / "run", **changes))
        assert not (tmp_path / "run").exists(), changes


def test_compiling_without_a_compiler_is_refused(
    tmp_path: Path, small_settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="needs a C"):
        train(small_settings(tmp_path / "run", compile=True))
    assert not (tmp_path / "run").exists()


def test_large_seeds_reach_the_last_step(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, seed=2**63 - 1))
    assert run.card.is_file()


def test_the_codebooks_are_kept_with_their_scales(trained: RunFolder) -> None:
    books, _ = load_tensors(trained.codebooks)
    for weight in quantizable_weights(trained.load()):
        integers, scale = books[f"{weight.name}/integers"], books[f"{weight.name}/scale"]
        rows = weight.parameter.detach().movedim(weight.channel_axis, 0).flatten(1)
        levels = scale[:, None] * integers.float()
        assert all(set(row.tolist()) <= set(level.tolist()) for row, level in zip(rows, levels, strict=True))


def test_one_folder_takes_one_training_at_a_time(tmp_path: Path, small_settings: Make) -> None:
    run = RunFolder(tmp_path / "run")
    with run.locked(), pytest.raises(RunFolderError, match="another process"):
        train(small_settings(run.path, epochs=1))


def test_resuming_with_another_split_is_refused(tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, quantize=False))
    run.card.unlink()
    record = json.loads(run.data.read_text())
    splits = record["splits"]
    splits["train"][0], splits["validation"][0] = splits["validation"][0], splits["train"][0]
    run.data.write_text(json.dumps(record))
    with pytest.raises(RunFolderError, match="or their patients"):
        train(small_settings(tmp_path / "run", epochs=1, quantize=False, resume=True))


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0},
        {"epochs_q": 0},
        {"learners": 1},
        {"bits": (4, 4)},
        {"crop": (4, 64)},
        {"lr": 0.0},
        {"validation_fraction": 1.0},
        {"batch_size": 0},
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, small_settings: Make, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        small_settings(tmp_path, **changes)


def test_a_model_that_was_changed_or_cut_off_is_refused(tmp_path: Path, trained: RunFolder) -> None:
    import shutil

    shutil.copytree(trained.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    content = bytearray(run.model.read_bytes())
    content[-1] ^= 1
    run.model.write_bytes(content)
    with pytest.raises(CheckpointError, match="SHA-256"):
        run.load()
    run.model.write_bytes(content[:1000])
    with pytest.raises(CheckpointError, match="cut off"):
        run.load()
    run.model.unlink()
    with pytest.raises(CheckpointError, match="no weights file"):
        run.load()


def test_a_model_of_another_architecture_is_refused(tmp_path: Path, trained: RunFolder) -> None:
    import shutil

    shutil.copytree(trained.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    card = run.read_json(run.card)
    run.write_json(run.card, card | {"backbone": "unet-s"})
    with pytest.raises(CheckpointError, match="another architecture"):
        run.load()
    run.write_json(run.card, card | {"format": 99})
    with pytest.raises(CheckpointError, match="newer version"):
        run.load()
    run.write_json(run.card, {"format": 1})
    with pytest.raises(CheckpointError, match="not a model's description"):
        run.load()


@pytest.mark.parametrize("part", ["validation", "test"])
def test_the_same_picture_on_both_sides_is_refused(part: str, tmp_path: Path, small_settings: Make) -> None:
    write_phantom_dataset(tmp_path / "data", 4, 1, (64, 64), 0)
    for kind in ("images", "masks"):
        (tmp_path / "data" / part / kind).mkdir(parents=True, exist_ok=True)
        source = min((tmp_path / "data" / kind).iterdir())
        shutil.copy(source, tmp_path / "data" / part / kind / f"again{source.suffix}")
    shutil.rmtree(tmp_path / "data" / "roi")
    shutil.rmtree(tmp_path / "data" / "test" / "roi")
    with pytest.raises(DataError, match=rf"again.png of the {part} images is the same picture as .*, which is trained"):
        train(small_settings(tmp_path / "run", data=tmp_path / "data"))


def test_validation_without_any_foreground_is_refused(tmp_path: Path, small_settings: Make, phantoms: Path) -> None:
    import shutil

    import numpy as np

    from d2ed2q.data import write_png

    data = tmp_path / "data"
    shutil.copytree(phantoms, data)
    settings = small_settings(tmp_path / "run", data=data, epochs=1)
    held_out = json.loads((train(settings).data).read_text())["splits"]["validation"]
    for id in held_out:
        write_png(data / "masks" / f"{id}.png", np.zeros((96, 96), np.uint8))
    with pytest.raises(DataError, match="foreground"):
        train(small_settings(tmp_path / "again", data=data, epochs=1))
