"""A plan as a TOML file that says why, and as a table on the terminal."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import tomli_w
from rich.table import Table

from d2ed2q.data import Fingerprint
from d2ed2q.limits import cores_in_words
from d2ed2q.recipes.budget import duration
from d2ed2q.recipes.calibrate import Costs
from d2ed2q.recipes.choices import Kind
from d2ed2q.recipes.machine import Machine
from d2ed2q.recipes.schedule import Schedule
from d2ed2q.recipes.train_settings import TrainSettings

__all__ = ["Plan", "plan_tables"]

_ORDER = (
    *("dataset", "time_limit", "fill_time", "folds", "fold", "seed", "backbone", "learners", "bits", "codebook"),
    *("resize", "scale", "spacing", "crop", "batch_size", "epochs", "epochs_q", "epoch_images", "lr", "lr_q", "loss"),
    *("standardize", "hue", "saturation", "value", "brightness", "contrast", "gamma", "zoom", "rotate", "elastic"),
    *("mirror", "foreground"),
    *("validation_fraction", "validation_images", "validate_every", "tta", "threshold_images", "precision"),
)
_SHOWN = (
    *("backbone", "resize", "scale", "spacing", "crop", "batch_size", "epochs", "epochs_q", "lr", "loss", "foreground"),
    *("validation_fraction", "validation_images", "validate_every", "tta", "threshold_images"),
)
_KINDS = {
    "thin": "thin structures",
    "texture": "a dense texture of cells",
    "objects": "objects",
    "volume": "structures in volumes",
}


@dataclass(frozen=True)
class Plan:
    """Settings for a training, and why they are what they are.

    Attributes:
        settings: complete; with a time limit.
        reasons: by name of the setting.
        kind: of the task.
        fingerprint: of the images.
        machine: it is for.
        costs: what was measured.
        schedule: the division of the time.
        budget: seconds.
        memory: bytes that training will take at most.
    """

    settings: TrainSettings
    reasons: dict[str, str]
    kind: Kind
    fingerprint: Fingerprint
    machine: Machine
    costs: Costs
    schedule: Schedule
    budget: int
    memory: int

    @property
    def names(self) -> tuple[str, ...]:
        """The settings that the plan is about, in order: chosen or given."""
        unset = TrainSettings(self.settings.data, self.settings.out)
        names = []
        for name in _ORDER:
            value = getattr(self.settings, name)
            chosen = name in self.reasons and (name not in ("folds", "fold", "seed") or value != getattr(unset, name))
            if chosen and value is not None and not (name == "crop" and self.settings.resize is not None):
                names.append(name)
        further = [name for name in self.reasons if name not in _ORDER and name not in ("data", "out", "budget")]
        return (*names, *(name for name in further if getattr(self.settings, name) not in (None, ())))

    def to_toml(self) -> str:
        """The settings as TOML, each below a comment that says why."""
        parts = [*_comment(self._header()), ""]
        for name in self.names:
            value = getattr(self.settings, name)
            plain = value if isinstance(value, (bool, int, float, str)) else _plain(value)
            # On one line, as a person would write a crop.
            text = tomli_w.dumps({name: plain}).strip()
            parts += [*_comment(self.reasons[name]), " ".join(text.split()).replace("[ ", "[").replace(", ]", "]")]
        return "\n".join(parts) + "\n"

    def _header(self) -> str:
        found, machine, costs = self.fingerprint, self.machine, self.costs
        sizes = " … ".join("×".join(map(str, reversed(size))) for size in dict.fromkeys(found.size))
        classes = "; ".join(
            f"{shape.name} {shape.share:.1%} of the pixels, in {shape.cases:.0%} of the images, {shape.components:g} "
            f"components, {shape.diameter:.1%} of the image across, {shape.thickness:.1%} thick"
            for shape in found.classes[1:]
        )
        color = "colour" if found.color else "grey" if found.channels in (1, 3) else f"{found.channels} channels"
        spacing = f", {'×'.join(f'{step:g}' for step in found.spacing)} mm" if found.spacing else ""
        memory = "unknown" if machine.training_memory is None else f"{machine.training_memory / 1e9:.1f} GB"
        return "\n".join(
            (
                "Written by d2ed2q plan. Use it with:",
                "  d2ed2q train --config plan.toml --data PATH --out RUN",
                "",
                f"task: {_KINDS[self.kind]}; {found.layout}, {found.n_cases} training images of {found.n_patients} "
                f"patients ({found.n_read} of them measured)",
                f"images: {sizes} pixels{spacing}, {color}, intensities {found.intensity}, mean {found.mean:.2f} ± "
                f"{found.std:.2f}{', with regions of interest' if found.has_roi else ''}",
                f"classes: {classes}",
                f"machine: {machine.processor}, {cores_in_words(machine.cores)}, {memory} free"
                + (f", {machine.gpu}" if machine.gpu else ""),
                f"measured: {costs.step * 1e3:.0f} ms an optimizer step ({costs.precision}), "
                f"{costs.validate * 1e3:.0f} ms a validation image, {costs.parameters:,} parameters in the ensemble",
                f"predicted: {duration(self.schedule.seconds)} of the budget of {duration(self.budget)}, "
                f"{self.memory / 1e9:.1f} GB of memory",
            )
        )


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else str(value)


def _comment(text: str) -> list[str]:
    lines: list[str] = []
    for line in text.splitlines():
        lines += textwrap.wrap(line, 116, subsequent_indent="  ", break_on_hyphens=False, drop_whitespace=True) or [""]
    return [f"# {line}".rstrip() for line in lines]


def plan_tables(plan: Plan) -> list[Table | str]:
    """What ``d2ed2q plan`` shows."""
    table = Table(title=f"{plan.fingerprint.layout}: {_KINDS[plan.kind]}", title_justify="left")
    for name in ("setting", "value", "why"):
        table.add_column(name)
    for name in plan.names:
        if name in _SHOWN:
            value = getattr(plan.settings, name)
            shown = " ".join(f"{part:g}" for part in value) if isinstance(value, tuple) else f"{value}"
            table.add_row(name, shown, plan.reasons[name])
    schedule, costs = plan.schedule, plan.costs
    return [
        table,
        f"{costs.step * 1e3:.0f} ms a step, {schedule.steps} steps an epoch; predicted: "
        f"{duration(schedule.seconds)} and {plan.memory / 1e9:.1f} GB",
    ]
