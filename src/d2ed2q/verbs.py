"""The verbs of the command line: one function each, nothing but hand-over.

Heavy imports stay inside the functions, so that ``--help`` answers at once.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from d2ed2q.errors import Interrupted
from d2ed2q.recipes.distill_settings import DistillSettings
from d2ed2q.recipes.experiment_settings import ExperimentRunSettings, ExperimentTableSettings
from d2ed2q.recipes.quantize_settings import QuantizeSettings
from d2ed2q.recipes.settings import (
    BenchSettings,
    DataCheckSettings,
    DemoSettings,
    EvaluateSettings,
    ExportSettings,
    FoldsSettings,
    InspectSettings,
    PlanSettings,
    PredictSettings,
    ZooSettings,
)
from d2ed2q.recipes.sweep_settings import SweepSettings
from d2ed2q.recipes.train_settings import TrainSettings
from d2ed2q.serve.command import AuditVerifySettings, ServeSettings

if TYPE_CHECKING:
    from d2ed2q.recipes.run_folder import RunFolder

__all__ = ["VERBS", "speaks"]


def speaks() -> bool:
    """Whether this process tells the user anything.

    Of several that train together the first of each machine does: what is wrong may be wrong on that machine alone.
    """
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _train(settings: TrainSettings) -> None:
    from d2ed2q.recipes.train import train

    command = ["train", "--data", str(settings.data), "--out", str(settings.out)]
    for name in ("devices", "nodes"):
        if getattr(settings, name) > 1:
            command += [f"--{name}", str(getattr(settings, name))]
    run = _resumable(settings.out, command, lambda: train(settings))
    if speaks():
        print(f"trained: {run.path}\nnext: {_what_follows(run)}")


def _what_follows(run: RunFolder) -> str:
    """The command that scores a finished run on images that it has not seen; without any, the one that exports it."""
    splits = run.read_json(run.data)["splits"]
    if splits.get("test") or splits.get("fold"):
        return _next("evaluate", run.path)
    if splits["validation"] and set(splits["validation"]).isdisjoint(splits["train"]):
        return _next("evaluate", run.path, "--split", "validation")
    return _next("export", run.path, "-o", "model.d2q")


def _next(*words: object) -> str:
    """A command that a shell takes as it stands."""
    return shlex.join(["d2ed2q", *map(str, words)])


def _resumable(out: Path, command: Sequence[str], work: Callable[[], Any]) -> Any:
    """Does what can be stopped, and then says which command goes on with it."""
    try:
        return work()
    except (Interrupted, KeyboardInterrupt) as error:
        if not (out / "config.toml").is_file():
            raise
        raise Interrupted(f"{str(error) or 'stopped'}; go on with: {_next(*command, '--resume')}") from error


def _plan(settings: PlanSettings) -> None:
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.plan import plan
    from d2ed2q.recipes.plan_file import plan_tables

    show(*plan_tables(plan(settings)))
    command = _next("train", "--config", settings.out, "--data", settings.data, "--out", "RUN")
    print(f"plan: {settings.out}\nnext: {command}")


def _quantize(settings: QuantizeSettings) -> None:
    from d2ed2q.recipes.quantize import quantize, require_target, with_found_bits

    if settings.search and not settings.resume:
        from d2ed2q.recipes.console import show
        from d2ed2q.recipes.search_bits import search_bits
        from d2ed2q.recipes.tables import search_tables

        require_target(settings)
        found = search_bits(settings)
        show(*search_tables(found))
        if settings.out is None:
            chosen = ("--bits", *found["chosen"]["bits"], "--codebook", found["chosen"]["codebook"])
            print(f"next: {_next('quantize', settings.run, '--out', 'NEW', *chosen)}")
            return
        settings = with_found_bits(settings, found)
    assert settings.out is not None  # which the settings check
    command = ["quantize", str(settings.run), "--out", str(settings.out)]
    command += ["--data", str(settings.data)] if settings.data is not None else []
    run = _resumable(settings.out, command, lambda: quantize(settings))
    print(f"quantized: {run.path}\nnext: {_what_follows(run)}")


def _distill(settings: DistillSettings) -> None:
    from d2ed2q.recipes.distill import distill

    command = ["distill", str(settings.run), "--out", str(settings.out)]
    run = _resumable(settings.out, command, lambda: distill(settings))
    print(f"distilled: {run.path}\nnext: {_what_follows(run)}")


def _sweep(settings: SweepSettings) -> None:
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.sweep import sweep
    from d2ed2q.recipes.tables import sweep_tables

    show(*sweep_tables(sweep(settings)))
    print(f"best settings: {settings.out / 'best.toml'}\npicture: {settings.out / 'sweep.png'}")


def _evaluate(settings: EvaluateSettings) -> None:
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.evaluate import evaluate
    from d2ed2q.recipes.tables import figures_table

    result = evaluate(settings)
    show(*figures_table(result))
    folder = settings.folder
    print(f"figures: {folder / 'evaluation.json'}\nreport: {folder / 'report.html'}")


def _folds(settings: FoldsSettings) -> None:
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.folds import summarize_folds
    from d2ed2q.recipes.tables import folds_tables

    show(*folds_tables(summarize_folds(settings)))


def _export(settings: ExportSettings) -> None:
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.export import export
    from d2ed2q.recipes.tables import export_lines

    manifest = export(settings)
    show(*export_lines(manifest, settings.out))
    if settings.format == "d2q":
        print(f"next: {_next('predict', settings.out, 'IMAGES', '--out', 'MASKS')}")


def _predict(settings: PredictSettings) -> int:
    from d2ed2q.recipes.console import counted
    from d2ed2q.recipes.predict import predict

    found = predict(settings)
    if settings.json:
        summary = {
            "out": str(settings.out),
            "done": len(found.masks),
            "skipped": found.skipped,
            "failed": len(found.failed),
            "refused": len(found.refused),
            "seconds": round(found.seconds, 3),
            "images": found.images,
        }
        print(json.dumps(summary, indent=2))
    else:
        earlier = f", {found.skipped} of them by an earlier call" if found.skipped else ""
        refused = f"; {counted(len(found.refused), 'image')} refused, too uncertain" if found.refused else ""
        print(f"{counted(len(found.masks), 'mask')} in {settings.out}{earlier}{refused} (research use only)")
    if found.failed:
        print(f"d2ed2q: {len(found.failed)} of {len(found.images)} images could not be segmented", file=sys.stderr)
    return 1 if found.failed else 0


def _bench(settings: BenchSettings) -> None:
    from d2ed2q.recipes.bench import bench
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.tables import bench_tables

    show(*bench_tables(bench(settings)))
    if settings.out is not None:
        print(f"figures: {settings.out}\npicture: {settings.out.with_suffix('.png')}")


def _inspect(settings: InspectSettings) -> int:
    from d2ed2q.deploy import is_bundle, model_path
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.tables import bundle_tables, inspection_tables

    path = model_path(settings.model)
    if not is_bundle(path):
        from d2ed2q.recipes.inspect_run import inspect_run

        facts = inspect_run(path)
    else:
        from d2ed2q.recipes.inspect_bundle import inspect_bundle

        facts = inspect_bundle(path, settings.engine)
    if settings.json:
        print(json.dumps(facts, indent=2))
    elif "manifest" in facts:
        show(*bundle_tables(facts))
    else:
        show(*inspection_tables(facts))
    return 0 if facts.get("self_test", {"passed": True})["passed"] else 1


def _experiment_run(settings: ExperimentRunSettings) -> None:
    from d2ed2q.recipes.console import counted
    from d2ed2q.recipes.experiment import run_experiments

    try:
        written = run_experiments(settings)
    except (Interrupted, KeyboardInterrupt) as error:
        raise Interrupted(f"{str(error) or 'stopped'}; the same command goes on") from error
    for path in written:
        print(f"result: {path}")
    print(f"{counted(len(written), 'new result')}\nnext: {_next('experiment', 'table', '--folder', settings.folder)}")


def _experiment_table(settings: ExperimentTableSettings) -> None:
    from d2ed2q.recipes.experiment_tables import write_tables

    changed = write_tables(settings)
    print("\n".join(f"written: {path}" for path in changed) or "all tables are what the results give")


def _serve(settings: ServeSettings) -> int:
    if settings.new_token:
        from d2ed2q.serve.access import new_token

        token, digest = new_token()
        print(f"token, for the client: {token}\nhash, for [http.tokens]: {digest}")
        return 0
    from d2ed2q.serve.settings import read_node_settings

    assert settings.config is not None  # which the settings check
    if settings.health:
        from d2ed2q.serve.health import ailment

        found = ailment(read_node_settings(settings.config))
        print(found or "the node can be sent images")
        return 0 if found is None else 1
    from d2ed2q.deploy import model_path
    from d2ed2q.serve.node import Node

    assert settings.model is not None
    node = Node(model_path(settings.model), read_node_settings(settings.config))
    if settings.check:
        from d2ed2q.serve.check import check_node

        print("\n".join(check_node(node)))
        return 0
    node.run(lambda: print("\n".join(node.greeting()), flush=True))
    return 0


def _audit_verify(settings: AuditVerifySettings) -> int:
    from d2ed2q.serve.audit import verify_audit

    entries, last = verify_audit(settings.log)
    print(f"{entries} entries, none changed; hash of the last one: {last}")
    if settings.expect is not None and settings.expect != last:
        print("this is not the hash that was expected: entries are missing at the end, or were added", file=sys.stderr)
        return 2
    return 0


def _zoo(settings: ZooSettings) -> None:
    from d2ed2q.deploy import read_bundle, zoo
    from d2ed2q.deploy.zoo import described
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.tables import zoo_tables

    bundles = {name: read_bundle(path) for name, path in zoo().items()}
    models = {name: (bundle.size, described(bundle.manifest)) for name, bundle in bundles.items()}
    if settings.json:
        print(json.dumps({name: {**facts, "bytes": size} for name, (size, facts) in models.items()}, indent=2))
    else:
        show(*zoo_tables(models))


def _demo(settings: DemoSettings) -> None:
    from d2ed2q.recipes.demo import demo

    demo(settings)


def _data_check(settings: DataCheckSettings) -> int:
    from d2ed2q.data import check_dataset
    from d2ed2q.recipes.console import show
    from d2ed2q.recipes.tables import check_tables

    report = check_dataset(settings.path, settings.dataset)
    if settings.json:
        print(json.dumps(dataclasses.asdict(report), indent=2, default=str))
    else:
        show(*check_tables(report))
    return 0 if report.ok else 2


VERBS: dict[str, tuple[type[Any], Callable[[Any], int | None]]] = {
    "plan": (PlanSettings, _plan),
    "train": (TrainSettings, _train),
    "quantize": (QuantizeSettings, _quantize),
    "sweep": (SweepSettings, _sweep),
    "distill": (DistillSettings, _distill),
    "evaluate": (EvaluateSettings, _evaluate),
    "folds": (FoldsSettings, _folds),
    "export": (ExportSettings, _export),
    "predict": (PredictSettings, _predict),
    "bench": (BenchSettings, _bench),
    "inspect": (InspectSettings, _inspect),
    "serve": (ServeSettings, _serve),
    "audit verify": (AuditVerifySettings, _audit_verify),
    "data check": (DataCheckSettings, _data_check),
    "experiment run": (ExperimentRunSettings, _experiment_run),
    "experiment table": (ExperimentTableSettings, _experiment_table),
    "zoo": (ZooSettings, _zoo),
    "demo": (DemoSettings, _demo),
}
"""Of every verb the settings that it takes, and what it does with them; that returns an exit code, or None for 0."""
