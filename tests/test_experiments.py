"""Published figures come from kept results, never from somebody's keyboard."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from d2ed2q.data import Sample, open_dataset, write_phantom_dataset
from d2ed2q.recipes.config import read_values
from d2ed2q.recipes.experiment_check import read_results
from d2ed2q.recipes.experiment_file import Experiment, find_experiments, read_experiment
from d2ed2q.recipes.experiment_result import kept_settings
from d2ed2q.recipes.experiment_settings import ExperimentTableSettings
from d2ed2q.recipes.experiment_tables import write_tables
from d2ed2q.recipes.sweep_space import read_space
from d2ed2q.recipes.train_settings import TrainSettings

from .pages import PAGES, ROOT

FOLDER = ROOT / "experiments"


def script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_result_is_what_its_experiment_describes() -> None:
    results = [result for seeds in read_results(FOLDER).values() for result in seeds]
    assert len(results) > 200
    for result in results:
        experiment = read_experiment(FOLDER, result["experiment"])
        assert result["settings"] == kept_settings(experiment.training(result["seed"], Path("data"), Path("run")))


@pytest.mark.parametrize("experiment", find_experiments(FOLDER), ids=lambda experiment: experiment.name)
def test_an_experiment_is_one_that_can_be_run(experiment: Experiment) -> None:
    for seed in experiment.seeds:
        settings = experiment.training(seed, Path("data"), Path("run"))
        if experiment.start is None:
            continue
        # Only its quantization is its own: all else is what its start was trained with.
        start = read_experiment(FOLDER, experiment.start)
        assert seed in start.seeds
        begun = start.training(seed, Path("data"), Path("run"))
        changed = {key for key, value in vars(settings).items() if value != getattr(begun, key)}
        assert changed <= {"bits", "codebook", "fractions", "random", "epochs_q", "lr_q"}


def test_every_published_figure_is_of_a_kept_result() -> None:
    write_tables(ExperimentTableSettings(FOLDER, check=True))


def test_the_files_on_the_pages_are_valid(tmp_path: Path) -> None:
    for page, file in (("search", "space.toml"), ("experiments", "one.toml")):
        text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        (tmp_path / file).write_text(text.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    assert [dimension.name for dimension in read_space(tmp_path / "space.toml")] == ["lr", "loss", "crop", "learners"]
    assert read_experiment(tmp_path, "one").seeds == (0, 1, 2)
    assert read_values(tmp_path / "one.toml", TrainSettings)["epochs"] == 440


def numbers_in(value: Any) -> Iterator[float]:
    """The named numbers of a JSON document; not those of its lists, among which every number may be found."""
    if isinstance(value, dict):
        for part in value.values():
            yield from numbers_in(part)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def figures_with_files() -> list[tuple[Path, str, Path]]:
    """Page, text and file of every link that takes its figures from a measurement."""
    found = []
    for page in PAGES:
        for text, target in re.findall(r"\[([^\]]*\d[^\]]*)\]\(([^)]+\.json)\)", page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            quotient = path.parent.name in ("deployment", "frontier") and text.endswith(("×", "times"))
            if quotient or path.parent.name == "bytes" or path.parent == ROOT / "benchmarks" / "results":
                found.append((page, text, path))
    return found


@pytest.mark.parametrize(("page", "text", "path"), figures_with_files())
def test_a_figure_that_leads_to_a_measurement_is_in_it(page: Path, text: str, path: Path) -> None:
    document = json.loads(path.read_text(encoding="utf-8"))
    measured = list(numbers_in(document))
    if path.parent.name == "frontier":  # an ensemble in int8, by one float network and by W-Net, each in one run
        seconds = {(row["network"], row["learners"]): row["median_seconds"] for row in document["networks"]}
        ensembles = [(time, seconds[name, 0]) for (name, learners), time in seconds.items() if learners]
        measured = [
            quotient
            for time, one in ensembles
            for quotient in (time["int8"] / one["float"], time["int8"] / time["w_net"])
        ]
    for figure in re.findall(r"\d[\d,]*(?:\.\d+)?", text):
        digits = len(figure.partition(".")[2])
        wanted = float(figure.replace(",", ""))
        assert any(round(number, digits) == wanted for number in measured), f"{page.name}: {figure} is not in {path}"


DEPLOYED = sorted((ROOT / "experiments" / "deployment").glob("*.json"))


def test_the_table_of_bundles_is_made_of_kept_results() -> None:
    module = script("deployment")
    text = (ROOT / "README.md").read_text()
    block = text.split(module.START)[1].split(module.END)[0].strip()
    assert block == module.table([json.loads(path.read_text()) for path in DEPLOYED])


def test_what_needs_no_training_is_scored_as_models_are(phantom_samples: list[Sample]) -> None:
    module = script("budget")
    counts = module.histograms(phantom_samples, 2)
    pixels = [sample.label[sample.roi] for sample in phantom_samples if sample.label is not None]
    share = float(torch.cat(pixels).float().mean())
    assert module.constant_dice(counts[0].sum(1)) == pytest.approx(2 * share / (1 + share))
    # Vessels are dark: some threshold finds many of them, and none does better on the images it was chosen on.
    found = module.threshold_dice(counts, counts)
    assert found > module.constant_dice(counts[0].sum(1))
    green = torch.cat([sample.image[1][sample.roi] for sample in phantom_samples])
    truth = torch.cat(pixels).bool()
    for level in (0.2, 0.3, 0.4, 0.5):
        mask = (green * 256).long().clamp_max(255) <= int(level * 256)
        assert 2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()) <= found + 1e-9


def test_classes_have_the_mean_of_their_dice() -> None:
    module = script("budget")
    assert module.constant_dice(np.array([50, 30, 20])) == pytest.approx(2 * 0.3 / 1.3 / 2)
    counts = np.zeros((1, 3, 256), np.int64)
    counts[0, 0, 0], counts[0, 1, 100], counts[0, 2, 255] = 50, 30, 20
    assert module.threshold_dice(counts, counts) == pytest.approx((2 * 30 / (50 + 30) + 1) / 2)


@pytest.fixture(scope="module")
def phantom_samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    root = tmp_path_factory.mktemp("phantoms")
    write_phantom_dataset(root, 2, 0, (64, 64), seed=0)
    dataset = open_dataset(root)
    return [dataset.read(case) for case in dataset.train]
