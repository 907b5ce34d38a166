from __future__ import annotations

import json
import os
import re
import shutil
import signal
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from d2ed2q.cli import main
from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import ConfigError, Interrupted, RunBusyError
from d2ed2q.recipes import experiment as experiment_module
from d2ed2q.recipes.config import settings_from, write_settings
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.experiment import run_experiments
from d2ed2q.recipes.experiment_check import read_results
from d2ed2q.recipes.experiment_file import Line, find_experiments, read_experiment, read_table
from d2ed2q.recipes.experiment_settings import ExperimentRunSettings, ExperimentTableSettings
from d2ed2q.recipes.experiment_tables import END, START, comparison, details, write_tables
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import EvaluateSettings
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.training import optimizer_step


def write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(tomli_w.dumps({key: list(v) if isinstance(v, tuple) else v for key, v in content.items()}))


@pytest.fixture
def folder(tmp_path: Path, small_values: dict[str, Any]) -> Path:
    """Experiments on the phantoms: one alone, and a table of two, of which one starts from the other."""
    root = tmp_path / "experiments"
    # Specks are chosen by the few-bit masks, so that full precision would not be scored alike.
    small = small_values | {"epochs": 1, "fractions": [0.5, 0.5], "clean": False}
    write(root / "alone.toml", small | {"experiment": {"data": "phantoms", "title": "alone"}})
    write(root / "bits" / "_common.toml", small | {"experiment": {"data": "phantoms", "seeds": [0, 1]}})
    lines = [{"label": "float", "weights": "full_precision"}, {"label": "four bits"}]
    write(root / "bits" / "four.toml", {"experiment": {"base": "_common.toml", "title": "four", "lines": lines}})
    few = {"base": "_common.toml", "title": "two bits", "start": "bits/four"}
    write(root / "bits" / "two.toml", {"bits": [2], "experiment": few})
    write(root / "bits" / "table.toml", {"title": "Bits", "order": ["four", "two", "../alone"], "reference": "four"})
    (tmp_path / "README.md").write_text(f"before\n{START}\n{END}\nafter\n")
    (tmp_path / "docs").mkdir()
    return root


def settings(folder: Path, phantoms: Path, *names: str, **changes: Any) -> ExperimentRunSettings:
    return ExperimentRunSettings(names, phantoms.parent, folder, folder.parent / "runs", **changes)


@pytest.fixture(scope="session")
def phantom_data(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phantoms under the name that the experiments have for them."""
    place = tmp_path_factory.mktemp("all-data") / "phantoms"
    place.symlink_to(phantoms)
    return place


def test_from_files_to_tables(folder: Path, phantom_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--data", str(phantom_data.parent), "--folder", str(folder), "--runs", str(folder.parent / "runs")]
    assert main(["experiment", "run", "alone", "bits", *command]) == 0
    assert "5 new results" in capsys.readouterr().out
    results = read_results(folder)
    assert {name: [result["seed"] for result in seeds] for name, seeds in results.items()} == {
        "alone": [0],
        "bits/four": [0, 1],
        "bits/two": [0, 1],
    }
    four, two = results["bits/four"], results["bits/two"]
    # Quantized from the same full-precision weights, seed by seed.
    for before, after in zip(four, two, strict=True):
        assert before["full_precision"] == after["full_precision"]
        assert before["few_bit"] != after["few_bit"]
        assert (before["bits"], after["bits"]) == ([4, 4, 4], [2, 2, 2])
        assert after["bytes"]["ensemble_few_bit"] < before["bytes"]["ensemble_few_bit"]
    assert four[0]["full_precision"] != four[1]["full_precision"]
    second = {**four[1], "date": "9999-01-02T00:00", "machine": "Other, 3 cores"}
    one, other = (
        details([{**four[0], "prediction": "meta"}, {**second, "prediction": name}]) for name in ("meta", "ensemble")
    )
    machines = " or ".join(sorted((four[0]["machine"], "Other, 3 cores")))
    assert f"on {machines}, {four[0]['date'][:10]} to 9999-01-02 (" in one
    assert one.count("the prediction") == 1
    assert "| **meta** (the prediction) | " in one
    mean = statistics.fmean([four[0]["few_bit"]["fov"]["meta"]["dice"], four[1]["few_bit"]["fov"]["ensemble"]["dice"]])
    chosen = next(line for line in other.splitlines() if line.startswith("| **the prediction** (meta or ensemble) | "))
    assert f"{mean:.4f} ±" in chosen
    assert four[0]["command"] == "d2ed2q experiment run bits/four --data DATA --seeds 0"

    assert main(["experiment", "table", "--folder", str(folder)]) == 0
    readme = (folder.parent / "README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "experiments/results/alone-seed0.json" in readme
    assert "bits/" not in readme, "what is compared has a table of its own"
    page = (folder.parent / "docs" / "results.md").read_text()
    rows = [line for line in page.split("## Bits")[1].splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == ["| float", "| four bits", "| two bits", "| alone"]
    assert " ± " in rows[1]
    assert rows[1].split(" | ")[3] == "reference"
    assert " ± " in rows[2].split(" | ")[3]
    assert re.fullmatch(r"[+−]0\.\d+", rows[4].split(" | ")[3]), "of another folder, compared with the reference"
    table, pair = read_table(folder, "bits"), [read_experiment(folder, f"bits/{name}") for name in ("four", "two")]
    elsewhere = replace(pair[1], values=pair[1].values | {"folds": 5, "fold": 1})
    compared, apart = (
        comparison(table, [(pair[0], four), (one, two)]).splitlines()[-1].split(" | ")[3]
        for one in (pair[1], elsewhere)
    )
    assert " ± " in compared
    assert apart == "–", "of other images"
    assert rows[3].rstrip(" |").endswith("0, 1")
    write_tables(ExperimentTableSettings(folder, check=True))
    alone = (folder / "alone.toml").read_text()
    (folder / "alone.toml").write_text(alone + '\nsuperseded_by = "bits/four"\n')  # its last table is [experiment]
    write_tables(ExperimentTableSettings(folder))
    readme = (folder.parent / "README.md").read_text()
    assert "alone-seed0" not in readme
    assert "bits/four-seed0" in readme, "the better one takes its place"
    later = (folder.parent / "docs" / "results.md").read_text()
    assert later.index("## Earlier recipes") < later.index("alone-seed0") < later.index("## Bits")
    (folder / "alone.toml").write_text(alone)
    write_tables(ExperimentTableSettings(folder))
    (folder.parent / "docs" / "results.md").write_text(page.replace("| two bits", "| three bits"))
    with pytest.raises(ConfigError, match="not what the results give"):
        write_tables(ExperimentTableSettings(folder, check=True))

    assert main(["experiment", "run", *command]) == 0
    assert "0 new results" in capsys.readouterr().out


def test_a_student_is_taught_by_the_same_seed_of_another(folder: Path, phantom_data: Path) -> None:
    described = {"base": "_common.toml", "teacher": "bits/four"}
    write(folder / "bits" / "student.toml", {"learners": 0, "experiment": described})
    (written,) = run_experiments(settings(folder, phantom_data, "bits/student", seeds=(1,)))
    student = json.loads(written.read_text())
    assert (student["learners"], student["seed"]) == (0, 1)
    assert set(student["few_bit"]["fov"]) == {"network"}
    runs = folder.parent / "runs" / "bits"
    taught = json.loads((runs / "student-seed1" / "teacher.json").read_text())
    assert taught["run"] == str(runs / "four-seed1")
    assert (
        taught["sha256"] == json.loads((runs / "four-seed1" / "model.json").read_text())["sha256"]["model.safetensors"]
    )
    assert student["teacher"] == "bits/four"
    # What another one taught is not published under its name.
    written.unlink()
    write(folder / "bits" / "student.toml", {"learners": 0, "experiment": {**described, "teacher": "alone"}})
    with pytest.raises(ConfigError, match=r"was begun with teacher = .*bits/four-seed1, but .* has alone now"):
        run_experiments(settings(folder, phantom_data, "bits/student", seeds=(1,)))


def test_what_is_of_one_file_is_not_taken_from_it(folder: Path) -> None:
    write(folder / "bits" / "three.toml", {"bits": [3], "experiment": {"base": "four.toml"}})
    three, four = (read_experiment(folder, f"bits/{name}") for name in ("three", "four"))
    assert (three.seeds, three.data, three.values["lr"]) == (four.seeds, four.data, four.values["lr"])
    assert (three.title, three.lines) == ("bits/three", (Line(),))
    assert (four.title, len(four.lines)) == ("four", 2)


def test_what_another_process_trains_is_left_to_it(folder: Path, phantom_data: Path) -> None:
    wanted = settings(folder, phantom_data, "alone", "bits/four", seeds=(0,))
    with (
        RunFolder(folder.parent / "runs" / "alone-seed0").locked(),
        pytest.raises(RunBusyError, match=r"1 new results, 1 left to others: another process .*alone-seed0"),
    ):
        run_experiments(wanted)
    assert [path.name for path in (folder / "results").rglob("*.json")] == ["four-seed0.json"]


def test_it_goes_on_where_it_was_stopped(folder: Path, phantom_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []
    steps = 0

    def counted(given: TrainSettings) -> Any:
        calls.append(given.resume)
        return train(given)

    def stopped_in_the_second_step(*arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return optimizer_step(*arguments)

    monkeypatch.setattr(experiment_module, "train", counted)
    wanted = settings(folder, phantom_data, "alone")
    with monkeypatch.context() as patch:
        patch.setattr("d2ed2q.training.loop.optimizer_step", stopped_in_the_second_step)
        with pytest.raises(Interrupted):
            run_experiments(wanted)
    assert len(run_experiments(wanted)) == 1
    assert calls == [False, True]
    stopped = folder.parent / "runs" / "alone-seed0"
    unstopped = train(replace(settings_from(stopped / "config.toml", TrainSettings), out=folder.parent / "unstopped"))
    assert (stopped / "model.safetensors").read_bytes() == unstopped.model.read_bytes()
    assert len(json.loads((stopped / "environment.json").read_text())["resumed"]) == 1
    # A result that is lost is made of the run that is there, and of no evaluation that somebody made in it.
    kept = folder / "results" / "alone-seed0.json"
    whole = json.loads(kept.read_text())
    run = folder.parent / "runs" / "alone-seed0"
    evaluate(EvaluateSettings(run, split="validation", tta="flips", full_precision=False))
    kept.unlink()
    assert len(run_experiments(wanted)) == 1
    again = json.loads(kept.read_text())
    when = {"date": None, "scored_date": None}
    assert {**again, **when} == {**whole, **when}
    assert calls == [False, True]
    # It is not made of a run with other settings than the file's.
    content = (folder / "alone.toml").read_text()
    (folder / "alone.toml").write_text(f"lr = 0.5\n{content.replace('lr = 0.01', '')}")
    kept.unlink()
    with pytest.raises(ConfigError, match=r"was begun with lr = 0.01, but alone.toml has 0.5 now; remove"):
        run_experiments(wanted)
    # Nor does one go on that was begun with others, be it that the file has the default now.
    (run / "model.json").unlink()
    begun = settings_from(run / "config.toml", TrainSettings)
    write_settings(run / "config.toml", replace(begun, clip=0.0))
    (folder / "alone.toml").write_text(content)
    with pytest.raises(ConfigError, match=r"was begun with clip = 0.0, but alone.toml has 1.0 now; remove"):
        run_experiments(wanted)
    # Nothing is trained only to be scored again.
    shutil.rmtree(run)
    kept.write_text(json.dumps(whole))
    assert run_experiments(settings(folder, phantom_data, "alone", again=True)) == []
    assert calls == [False, True]


def test_other_datasets_have_results_of_their_own(
    folder: Path, phantom_data: Path, small_values: dict[str, Any]
) -> None:
    write_phantom_dataset(phantom_data.parent / "elsewhere", n_train=2, n_test=1, size=(96, 96), seed=7)
    part = {"name": "part", "data": "elsewhere"}
    smaller = {"name": "smaller", "data": "phantoms", "scale": 0.5}
    described = {
        "data": "phantoms",
        "others": [smaller, {"name": "elsewhere", "data": "elsewhere", "scale": 1.0, "split": "all"}, part],
    }
    write(
        folder / "alone.toml", small_values | {"epochs": 1, "quantize": False, "clean": False, "experiment": described}
    )
    run_experiments(settings(folder, phantom_data, "alone"))
    results = read_results(folder)
    assert set(results) == {"alone", "smaller", "elsewhere", "part"}
    assert (results["elsewhere"][0]["scored"], results["elsewhere"][0]["images"]) == ("all", 3)
    assert results["elsewhere"][0]["scored_by"].endswith("--out OUT --scale 1 --split all")
    assert results["smaller"][0]["scored_by"].endswith("--scale 0.5")
    assert results["part"][0]["scored_by"].endswith("--out OUT"), "at the scale of the training"
    assert results["smaller"][0]["full_precision"] is None
    assert results["smaller"][0]["few_bit"] != results["alone"][0]["few_bit"]
    write_tables(ExperimentTableSettings(folder))
    readme, page = folder.parent / "README.md", folder.parent / "docs" / "results.md"
    assert "holes of at most" not in page.read_text()
    assert ": 3 images, all of the set, inside the field of view" in page.read_text()
    # The first page leaves out a part of a set that was scored as a whole.
    assert [re.findall(r"results/(\w+)-seed0.json", text) for text in (readme.read_text(), page.read_text())] == [
        ["alone", "elsewhere", "smaller"],
        ["alone", "elsewhere", "part", "smaller"],
    ]
    # What was done to masks after the threshold is said, and by a model of what images of another set were scored.
    kept = folder / "results" / "alone-seed0.json"
    changes = {"cleaning": {"max_hole": 7, "min_area": 3}, "dataset": "decathlon", "dataset_title": "Spleen"}
    kept.write_text(json.dumps(json.loads(kept.read_text()) | changes))
    write_tables(ExperimentTableSettings(folder))
    assert "holes of at most 7 pixels are filled and islands of fewer than 3 pixels are dropped" in page.read_text()
    assert "**Spleen, by a model of folder**" in page.read_text()


def test_a_file_of_an_experiment_is_one_of_a_training(folder: Path, tmp_path: Path) -> None:
    write(tmp_path / "given.toml", {"data": "x", "out": "y", "epochs": 7, "experiment": {"data": "DRIVE"}})
    assert settings_from(tmp_path / "given.toml", TrainSettings).epochs == 7
    two = read_experiment(folder, "bits/two")
    assert two.values["bits"] == (2,)
    assert two.values["backbone"] == "unet-xs"
    assert two.seeds == (0, 1)
    assert [experiment.name for experiment in find_experiments(folder)] == ["alone", "bits/four", "bits/two"]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("x.toml", {"epochs": 1}, "lacks the table"),
        ("x.toml", {"experiment": {"title": "x"}}, "lacks the table"),
        ("x.toml", {"epoch": 1, "experiment": {"data": "d"}}, "did you mean 'epochs'"),
        ("x.toml", {"experiment": {"data": "d", "seed": 1}}, "did you mean 'seeds'"),
        ("x.toml", {"experiment": {"data": "d", "seeds": [1, 1]}}, "different numbers"),
        ("x.toml", {"out": "r", "experiment": {"data": "d"}}, "for the command line"),
        ("x.toml", {"experiment": {"data": "d", "start": "y"}}, "names y, but"),
        ("x.toml", {"experiment": {"data": "d", "teacher": "y"}}, "names y, but"),
        ("x.toml", {"experiment": {"data": "d", "superseded_by": "y"}}, "names y, but"),
        ("x.toml", {"experiment": {"data": "d", "start": "y", "teacher": "y"}}, "exclude each other"),
        ("x.toml", {"teacher": "run", "experiment": {"data": "d"}}, r"belongs below \[experiment\]"),
        ("x.toml", {"experiment": {"data": "phantoms", "teacher": "x"}}, "x cannot be built on"),
        ("x.toml", {"experiment": {"data": "d", "base": "x.toml"}}, "builds on itself"),
        ("x.toml", {"experiment": {"data": "d", "base": "y.toml"}}, "cannot read"),
        ("x.toml", {"learners": 1, "experiment": {"data": "phantoms"}}, "at least 2"),
        ("x.toml", {"experiment": {"data": "d", "lines": [{"view": "base_9"}]}}, "no view 'base_9'; there are: base_1"),
        ("x.toml", {"experiment": {"data": "d", "others": [{"name": "../x", "data": "d"}]}}, "letters, digits"),
        ("x.toml", {"experiment": {"data": "d", "others": [{"name": "x", "data": "d"}]}}, "both have results named x"),
        ("x.toml", {"experiment": {"data": "phantoms", "others": [{"name": "y", "data": "none"}]}}, "not at .*none"),
    ],
)
def test_a_wrong_file_is_named(
    file: str, content: dict[str, Any], message: str, tmp_path: Path, phantom_data: Path
) -> None:
    write(tmp_path / "e" / file, content)
    with pytest.raises(ConfigError, match=message):
        run_experiments(settings(tmp_path / "e", phantom_data, "x"))


def test_what_is_missing_is_named(folder: Path, phantom_data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no experiment other .* there are: alone, bits/four, bits/two"):
        run_experiments(settings(folder, phantom_data, "other"))
    with pytest.raises(ConfigError, match="seed 5"):
        run_experiments(settings(folder, phantom_data, "alone", seeds=(5,)))
    with pytest.raises(ConfigError, match="no folder of experiments"):
        run_experiments(settings(tmp_path / "nowhere", phantom_data, "alone"))
    with pytest.raises(ConfigError, match=r"data of alone are not at .*/nothing/phantoms"):
        run_experiments(settings(folder, tmp_path / "nothing" / "x", "alone"))
    (folder / "bits" / "two.toml").unlink()
    with pytest.raises(ConfigError, match="names two"):
        read_table(folder, "bits")
    (folder / "results").mkdir()
    for content, message in (("{", "cannot be read"), ("{}", "lacks name, experiment"), ("[]", "lacks an object")):
        (folder / "results" / "cut.json").write_text(content)
        with pytest.raises(ConfigError, match=rf"cut\.json {message}"):
            write_tables(ExperimentTableSettings(folder))
    (folder / "results" / "cut.json").unlink()
    (folder.parent / "README.md").write_text("no marks")
    with pytest.raises(ConfigError, match="needs the marks"):
        write_tables(ExperimentTableSettings(folder))
