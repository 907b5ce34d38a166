from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from d2ed2q.data import batches, open_dataset
from d2ed2q.ensemble import DeepEnsemble
from d2ed2q.recipes.config import settings_from
from d2ed2q.recipes.quantize import quantize
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.run_data import split_cases
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.statistics import estimate_statistics, norms_of
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.recipes.training_parts import training_images


def test_statistics_are_the_plain_average_over_the_batches() -> None:
    network = nn.Sequential(nn.BatchNorm2d(2), nn.Dropout(0.5), nn.BatchNorm2d(2, track_running_stats=False)).eval()
    norm = norms_of(network)[0]
    images = [torch.rand(3, 2, 4, 5) * (1 + index) for index in range(4)]
    assert norms_of(network) == [network[0]]
    assert norm.running_mean is not None
    assert norm.running_var is not None
    weight = norm.weight.clone()
    estimate_statistics(norms_of(network), network, images)
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean((0, 2, 3)) for x in images]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var((0, 2, 3)) for x in images]).mean(0))
    assert (norm.momentum, norm.training, network[1].training) == (0.1, False, False)
    assert torch.equal(norm.weight, weight)


def test_a_short_retraining_does_not_keep_the_statistics_of_other_weights(trained: RunFolder, tmp_path: Path) -> None:
    # At a rate of nothing weights stay as they are rounded, so that their statistics can be found here, too.
    settings = QuantizeSettings(trained.path, out=tmp_path / "run", bits=(2,), fractions=(1.0,), lr_q=1e-12, epochs_q=1)
    run = quantize(settings)
    taught: TrainSettings = settings_from(run.config, TrainSettings)
    dataset = open_dataset(taught.data)
    training_set = training_images(taught, dataset, split_cases(taught, dataset)["train"])
    images = [batch["image"] for batch in batches(training_set, taught.batch_size, 0, taught.seed)]
    wanted = run.load().eval()
    estimate_statistics(norms_of(wanted), wanted, images)

    def off(ensemble: DeepEnsemble) -> float:
        pairs = zip(ensemble.named_buffers(), wanted.named_buffers(), strict=True)
        return sum(float((a - b).abs().mean()) for (name, a), (_, b) in pairs if name.endswith("running_mean"))

    assert off(run.load()) < 0.2 * off(run.load(full_precision=True))
