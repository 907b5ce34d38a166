"""Everything once, on made-up retinas: images, training, quantization, evaluation, report."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

from d2ed2q.data import write_phantom_dataset
from d2ed2q.errors import RunFolderError
from d2ed2q.files import write_text
from d2ed2q.recipes.console import show
from d2ed2q.recipes.evaluate import evaluate
from d2ed2q.recipes.run_folder import RunFolder
from d2ed2q.recipes.settings import DemoSettings, EvaluateSettings
from d2ed2q.recipes.tables import figures_table
from d2ed2q.recipes.train import train
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["demo"]

_MARK = ".d2ed2q-demo"


def demo(settings: DemoSettings) -> RunFolder:
    """Writes phantoms, trains and quantizes a small ensemble on them, scores it and writes the report.

    Returns:
        RunFolder: the finished run, in ``OUT/run``.

    Raises:
        RunFolderError: the folder exists and is not an earlier demo.
    """
    _clear(settings.out)
    data = settings.out / "phantoms"
    print("1/4  drawing 24 made-up retinas", flush=True)
    write_phantom_dataset(data, n_train=16, n_test=8, size=(256, 256), seed=settings.seed)
    print("2/4  training 3 base learners and a meta learner, then quantizing them to 4 bits in 4 steps", flush=True)
    run = train(
        TrainSettings(
            data=data,
            out=settings.out / "run",
            dataset="folder",
            backbone="unet-xs",
            epochs=40,
            epochs_q=8,
            crop=(128, 128),
            batch_size=4,
            lr=1e-2,
            lr_q=3e-3,
            hue=10.0,
            validate_every=8,
            tta="none",
            seed=settings.seed,
        )
    )
    print("3/4  scoring on 8 images that were never trained on", flush=True)
    result = evaluate(EvaluateSettings(run=run.path))
    print("4/4  done", flush=True)
    show(*figures_table(result))
    print(f"report: {run.report.resolve()}")
    command = ["d2ed2q", "predict", run.path, data / "test" / "images", "--out", settings.out / "masks"]
    print(f"next: {shlex.join(map(str, command))}")
    return run


def _clear(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"{folder} is a file; choose another place with --out")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).is_file():
            raise RunFolderError(f"{folder} exists and is not an earlier demo; choose another folder with --out")
        shutil.rmtree(folder)
    write_text(folder / _MARK, "An earlier demo, replaced by the next one.\n")
