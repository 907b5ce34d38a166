from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from d2ed2q.cli import main
from d2ed2q.deploy import read_bundle
from d2ed2q.ensemble import learner_probabilities
from d2ed2q.errors import ConfigError, DataError, RunFolderError
from d2ed2q.recipes.config import settings_from, write_settings
from d2ed2q.recipes.distill import distill
from d2ed2q.recipes.distill_settings import DistillSettings
from d2ed2q.recipes.epochs_run import epochs_run
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_data import seen_images
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.teacher import Teacher
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

Make = Callable[..., TrainSettings]


def test_the_target_lies_between_label_and_the_learners_mean(trained: RunFolder) -> None:
    image, label = torch.rand(2, 3, 32, 32), torch.randint(0, 2, (2, 32, 32))
    device = torch.device("cpu")
    own = Teacher(trained, trained.read_card(), 1.0, device).target(image, label)
    with torch.no_grad():
        assert torch.equal(own, learner_probabilities(trained.load()(image).logits).mean(0))
    mixed = Teacher(trained, trained.read_card(), 0.25, device).target(image, label)
    assert torch.allclose(mixed, 0.25 * own + 0.75 * label[:, None], atol=1e-6)
    assert not mixed.requires_grad


def test_a_student_is_one_few_bit_network(trained: RunFolder, tmp_path: Path) -> None:
    teacher = RunFolder(tmp_path / "teacher")
    shutil.copytree(trained.path, teacher.path)
    planned = replace(settings_from(trained.config, TrainSettings), budget="60m", time_limit=3600.0, fill_time=True)
    planned = replace(planned, epochs=90, epochs_q=40)  # of which its time allowed what the log tells
    write_settings(teacher.config, planned)  # the student has a budget of its own, or none
    assert epochs_run(teacher) == (3, 1)
    run = distill(DistillSettings(teacher.path, tmp_path / "student", epochs=1))
    card, taught = run.read_card(), settings_from(trained.config, TrainSettings)
    settings = settings_from(run.config, TrainSettings)
    assert (card.learners, card.bits, card.backbone) == (0, (4,), trained.read_card().backbone)
    assert (settings.epochs, settings.epochs_q, settings.crop) == (1, taught.epochs_q, taught.crop)
    assert settings.teacher == teacher.path
    assert settings.time_limit is None
    assert json.loads(run.teacher.read_text())["sha256"] == trained.read_card().sha256["model.safetensors"]
    assert list(evaluate(EvaluateSettings(run.path))["scopes"]["fov"]) == ["network"]
    assert main(["export", str(run.path), "-o", str(tmp_path / "student.d2q"), "--tolerance", "100"]) == 0
    provenance = json.dumps(read_bundle(tmp_path / "student.d2q").manifest.provenance)
    assert "teacher_share" in provenance
    assert str(tmp_path) not in provenance, "no path of this machine"
    # The teacher makes a difference.
    alone = train(replace(settings, out=tmp_path / "alone", teacher=None))
    assert not torch.equal(next(alone.load().parameters()), next(run.load().parameters()))


def test_a_student_may_be_quantized_anew(trained: RunFolder, tmp_path: Path) -> None:
    teacher = RunFolder(tmp_path / "teacher")
    shutil.copytree(trained.path, teacher.path)
    student = distill(DistillSettings(teacher.path, tmp_path / "student", epochs=1))
    again = quantize(QuantizeSettings(student.path, out=tmp_path / "again"))
    assert again.model.read_bytes() == student.model.read_bytes()
    assert json.loads(again.teacher.read_text()) == json.loads(student.teacher.read_text())
    fewer = quantize(QuantizeSettings(student.path, out=tmp_path / "fewer", bits=(3,)))
    assert fewer.read_card().bits == (3,)
    # With another teacher in its place the retraining would be another one.
    shutil.rmtree(teacher.path)
    shutil.copytree(again.path, teacher.path)
    with pytest.raises(RunFolderError, match=r"are not those that .*student learnt from"):
        quantize(QuantizeSettings(student.path, out=tmp_path / "other", bits=(3,)))


def test_one_network_takes_neither_view_nor_devices_from_its_teacher(trained: RunFolder, tmp_path: Path) -> None:
    teacher = RunFolder(tmp_path / "teacher")
    shutil.copytree(trained.path, teacher.path)
    taught: TrainSettings = settings_from(teacher.config, TrainSettings)
    write_settings(teacher.config, replace(taught, prediction="ensemble", devices=2, lr=0.02, lr_q=0.01))
    run = distill(DistillSettings(teacher.path, tmp_path / "student", epochs=1, quantize=False, backbone="unet-s"))
    begun: TrainSettings = settings_from(run.config, TrainSettings)
    assert (begun.prediction, begun.devices) == ("auto", 1)
    assert (begun.lr, begun.lr_q) == (None, None), "another network has rates of its own"
    run.card.unlink()
    with pytest.raises(ConfigError, match=r"teacher is .*run here, but .* was begun with .*teacher"):
        distill(DistillSettings(trained.path, run.path, resume=True))


def test_an_ensemble_can_learn_from_a_teacher_too(trained: RunFolder, tmp_path: Path, small_settings: Make) -> None:
    run = train(small_settings(tmp_path / "run", epochs=1, loss="bce_dice", teacher=trained.path, teacher_share=1.0))
    assert run.read_card().learners == 2


def test_it_goes_on_only_with_the_same_teacher(trained: RunFolder, tmp_path: Path) -> None:
    out = tmp_path / "student"
    run = distill(DistillSettings(trained.path, out, epochs=1))
    with pytest.raises(RunFolderError, match="has finished"):
        distill(DistillSettings(trained.path, out, resume=True))
    run.card.unlink()  # as if it had been stopped before its end
    finished = run.model.read_bytes()
    assert distill(DistillSettings(trained.path, out, resume=True)).model.read_bytes() == finished
    run.card.unlink()
    run.teacher.write_text(json.dumps(json.loads(run.teacher.read_text()) | {"sha256": "0" * 64}))
    with pytest.raises(RunFolderError, match="not those that"):
        distill(DistillSettings(trained.path, out, resume=True))
    run.teacher.write_text("{}")
    with pytest.raises(RunFolderError, match="lacks sha256, seen"):
        distill(DistillSettings(trained.path, out, resume=True))


def test_what_a_teacher_has_seen_is_no_test_of_its_student(tmp_path: Path, small_settings: Make) -> None:
    quick = {"epochs": 1, "quantize": False, "folds": 2}
    teacher = train(small_settings(tmp_path / "teacher", fold=0, **quick))
    for changes in ({"fold": 1}, {"fold": 0, "seed": 1}):
        with pytest.raises(ConfigError, match=r"the teacher .* was trained on \d of the \d images .* kept for scoring"):
            train(small_settings(tmp_path / "student", teacher=teacher.path, **quick | changes))
        assert not (tmp_path / "student").exists()
    student = train(small_settings(tmp_path / "student", teacher=teacher.path, fold=0, **quick))
    recorded = student.read_json(student.data)
    assert seen_images(student) == seen_images(teacher) == set(student.read_json(student.teacher)["seen"])
    assert not seen_images(student) & {recorded["image_sha256"][id] for id in recorded["splits"]["fold"]}
    # What only the teacher has seen does not count as unseen either.
    (unseen,) = recorded["splits"]["fold"][:1]
    content = student.read_json(student.teacher)
    content["seen"].append(recorded["image_sha256"][unseen])
    student.write_json(student.teacher, content)
    with pytest.raises(DataError, match=rf"1 of \d images .* were used in training \({unseen} is one\)"):
        evaluate(EvaluateSettings(student.path))


def test_a_teacher_that_sees_images_otherwise_is_refused(
    trained: RunFolder, tmp_path: Path, small_settings: Make
) -> None:
    with pytest.raises(ConfigError, match=r"the teacher .* has resolution"):
        train(small_settings(tmp_path / "run", scale=0.5, teacher=trained.path))
    with pytest.raises(ConfigError, match="teacher_share must be above 0"):
        small_settings(tmp_path / "run", teacher_share=0.0)
    with pytest.raises(ConfigError, match="a student has to see them as its teacher does"):
        small_settings(tmp_path / "run", teacher=trained.path, budget="10m")


def test_what_is_missing_is_named(
    trained: RunFolder, tmp_path: Path, small_settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", str(tmp_path / "nothing"), "--out", str(tmp_path / "student")]) == 2
    assert "no run folder" in capsys.readouterr().err
    unfinished = RunFolder(tmp_path / "unfinished")
    unfinished.path.mkdir()
    write_settings(unfinished.config, small_settings(unfinished.path))
    with pytest.raises(RunFolderError, match="has not finished"):
        distill(DistillSettings(unfinished.path, tmp_path / "student"))
    with pytest.raises(RunFolderError, match="no run to resume"):
        distill(DistillSettings(trained.path, tmp_path / "student", resume=True))
    with pytest.raises(RunFolderError, match="exists"):
        distill(DistillSettings(trained.path, trained.path))


def test_a_student_of_another_architecture_does_not_inherit_what_belongs_to_the_teachers(
    trained: RunFolder, tmp_path: Path
) -> None:
    taught = RunFolder(tmp_path / "taught")
    shutil.copytree(trained.path, taught.path)
    settings: TrainSettings = settings_from(taught.config, TrainSettings)
    write_settings(taught.config, replace(settings, imagenet_weights=Path("resnet34.pth")))
    run = distill(DistillSettings(taught.path, tmp_path / "student", backbone="unet-xs", epochs=1))
    begun: TrainSettings = settings_from(run.config, TrainSettings)
    assert (begun.imagenet_weights, begun.taps) == (None, ())
    run.card.unlink()
    with pytest.raises(ConfigError, match=r"epochs is 2 here, but .* was begun with 1"):
        distill(DistillSettings(taught.path, tmp_path / "student", epochs=2, resume=True))
    with pytest.raises(ConfigError, match=r"teacher_share is 0\.9 here"):
        distill(DistillSettings(taught.path, tmp_path / "student", share=0.9, resume=True))
