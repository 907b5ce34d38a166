"""The model card of a bundle: MONAI's ``metadata.json`` for programs, Markdown for people."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from d2ed2q.data.intensity import Intensity
from d2ed2q.deploy.manifest import InputSpec, Manifest, OutputSpec
from d2ed2q.ensemble import composition, learner_names

__all__ = ["INTENDED_USE", "markdown_card", "monai_metadata", "threshold_images"]

INTENDED_USE = "Research use only; not a medical device."
_SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
_REFERENCES = [
    "D2ED2Q: deep diversified ensemble with deep diversified quantization; see docs/method.md of the d2ed2q package"
]


def monai_metadata(manifest: Manifest, figures: Mapping[str, float]) -> bytes:
    """``metadata.json`` with the keys of a MONAI bundle.

    Args:
        manifest: of the bundle.
        figures: what is known of its accuracy, by name.
    """
    given, output, origin = manifest.input, manifest.output, manifest.provenance
    packages = origin.get("versions", {})
    size: list[Any] = list(given.resize) if given.resize else [f"{given.stride}*n"] * given.dims
    names = "RGB" if given.channels == 3 and given.dims == 2 else [f"channel {i}" for i in range(given.channels)]
    if given.channels == 1:
        names = "L"
    content = {
        "schema": _SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported {manifest.created}"},
        "monai_version": packages.get("monai", ""),
        "pytorch_version": packages.get("torch", ""),
        "numpy_version": packages.get("numpy", ""),
        "required_packages_version": {"d2ed2q": packages.get("d2ed2q", "")},
        "name": manifest.name,
        "task": f"Segmentation of {', '.join(output.classes[1:])}",
        "description": f"{manifest.backbone}: {composition(output.learners, output.fuse)}",
        "authors": "",
        "copyright": "",
        "data_source": ", ".join(str(origin[key]) for key in ("dataset", "terms") if origin.get(key)),
        "data_type": "image" if given.dims == 2 else "nifti",
        "image_classes": f"{given.channels} channels, {_intensities(given)}, scaled to [0, 1]",
        "label_classes": f"class numbers: {', '.join(f'{i} {name}' for i, name in enumerate(output.classes))}",
        "pred_classes": f"probabilities of {' and '.join(learner_names(output.learners))}, in this order",
        "eval_metrics": dict(figures),
        "intended_use": INTENDED_USE,
        "references": _REFERENCES,
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "modality": "OP" if output.region == "field_of_view" else "n/a",
                    "num_channels": given.channels,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {str(i): name for i, name in enumerate(names)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": output.channels,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [0, 1],
                    "is_patch_data": False,
                    "channel_def": {"0": output.classes[1]}
                    if output.channels == 1
                    else {str(i): name for i, name in enumerate(output.classes)},
                }
            },
        },
    }
    return (json.dumps(content, indent=1) + "\n").encode()


def markdown_card(manifest: Manifest, figures: Mapping[str, float]) -> bytes:
    """The card for people.

    Args:
        manifest: of the bundle.
        figures: what is known of its accuracy, by name.
    """
    given, output, weights = manifest.input, manifest.output, manifest.weights
    activations, accuracy, origin = manifest.activations, manifest.accuracy, manifest.provenance
    settings = origin.get("settings", {})
    validation = _validation_images(settings)
    bits = "not quantized in training" if weights.bits is None else f"{weights.bits} bits, {weights.codebook}"
    exact = (
        "the engine multiplies with exactly the trained weights"
        if weights.exact
        else f"a second rounding moves them by up to {weights.error:.2%} (relative norm of a tensor)"
    )
    lines = [
        f"# {manifest.name}",
        "",
        f"**{INTENDED_USE}**",
        "",
        f"Segments {', '.join(output.classes[1:])}: {composition(output.learners, output.fuse)}, {manifest.backbone}; "
        f"`{output.prediction}` is the prediction.",
        "",
        "## Input and output",
        "",
        f"- {'Images' if given.dims == 2 else 'Volumes'} of {given.channels} channel(s), {_intensities(given)}, "
        f"{_resolution(given)}{_windows(given)}.",
        _decision(output, settings, validation),
        "- Only the bright disc of a fundus photograph counts; all else is background."
        if output.region == "field_of_view"
        else "- The whole image counts.",
        *_cleaning(output, validation),
        *_orientation(given),
        "",
        "## Weights and activations",
        "",
        f"- {weights.tensors} weight tensors, {bits}; {exact}; {weights.entropy:.2f} bits of entropy a weight.",
        f"- Activations in {activations.precision}"
        + (f", ranges by {activations.method} on {activations.images} training images" if activations.method else "")
        + (f"; in float32: {', '.join(activations.float_layers)}" if activations.float_layers else "")
        + ".",
        "",
        "## Accuracy",
        "",
        f"- On {_validation_images(settings, accuracy.images)}, as trained → in this file: "
        f"Dice {accuracy.dice[0]:.4f} → {accuracy.dice[1]:.4f}"
        + (f", AUC {accuracy.auc[0]:.4f} → {accuracy.auc[1]:.4f}" if accuracy.auc else "")
        + ".",
    ]
    if accuracy.ece:
        lines.append(
            f"- Calibration error on the same images, before → after the temperature: {accuracy.ece[0]:.4f} → "
            f"{accuracy.ece[1]:.4f}."
        )
    if manifest.refusal:
        bound = manifest.refusal
        lines.append(
            f"- Images of a doubt above {bound.doubt:.3f} are better refused: of "
            f"{_validation_images(settings, bound.images)}, untouched, blurred and darkened ones, that refuses "
            f"{bound.refused:.0%} of those whose mask has a Dice below {bound.dice:.3f}, and {1 - bound.kept:.0%} of "
            f"the others."
        )
    lines += [f"- {name}: {value:.4f}" for name, value in figures.items()]
    lines += [
        "",
        "## Provenance",
        "",
        f"- Trained on {origin.get('dataset', 'unknown data')}, {len(origin.get('sha256', []))} images (SHA-256 in the "
        f"manifest), seed {origin.get('seed')}; {origin.get('trained', '')}.",
        *([f"- Terms of these images: {origin['terms']}."] if origin.get("terms") else []),
        f"- Exported {manifest.created}.",
        "- The sample image is made up; no patient's image is in this file.",
        "",
        "## Limits",
        "",
        "- Trained and checked on the data named above only: other cameras, scanners and patients were not tested.",
        "- The uncertainty says where the learners are undecided or disagree; it does not see what none of them knows.",
        "",
    ]
    return "\n".join(lines).encode()


def _intensities(given: InputSpec) -> str:
    return _values(given.intensity) + (", then all of one mean and one spread" if given.standardize else "")


def _values(intensity: Intensity) -> str:
    if intensity.rule == "byte":
        return "8 bits"
    if intensity.rule == "percentile":
        return "each from its own 0.5th to its 99.5th percentile"
    spans = zip(intensity.low, intensity.high, strict=True)
    return "values from " + ", ".join(f"{low:g} to {high:g}" for low, high in spans)


def _resolution(given: InputSpec) -> str:
    if given.resize:
        return f"resized to {given.resize[0]}×{given.resize[1]}"
    if given.spacing:
        return f"resampled to {'×'.join(f'{step:g}' for step in given.spacing)} mm ({'D×H×W'[-2 * given.dims + 1 :]})"
    return "at their own resolution" if given.scale == 1 else f"at {given.scale:g} × their own resolution"


def _windows(given: InputSpec) -> str:
    return f", large ones in windows of {'×'.join(map(str, given.window))}" if given.window else ""


def _decision(output: OutputSpec, settings: Mapping[str, Any], validation: str) -> str:
    calibrated = f"probabilities calibrated with temperature {output.temperature:.3f}, chosen on {validation}"
    if len(output.classes) > 2:
        return (
            f"- Each pixel is of its most probable class, by {calibrated} with test-time augmentation `{output.tta}`."
        )
    return (
        f"- Threshold {output.thresholds[output.prediction]:.3f}, chosen on {threshold_images(settings)}, on "
        f"{calibrated}; both with test-time augmentation `{output.tta}`."
    )


def threshold_images(settings: Mapping[str, Any]) -> str:
    """The images that the thresholds of a binary task were chosen on, in words.

    Args:
        settings: of the training.
    """
    if settings.get("threshold_images") != "all":
        return _validation_images(settings)
    return "the training images" if settings.get("training_images") == "all" else "training and validation images"


def _validation_images(settings: Mapping[str, Any], count: int | None = None) -> str:
    if settings.get("training_images") == "all":
        return f"{count or 'some'} of the training images"
    return "validation images" if count is None else f"{count} validation images"


def _cleaning(output: OutputSpec, validation: str) -> list[str]:
    if output.cleaning is None:
        return []
    return [f"- In masks {output.cleaning}, at the image's own resolution; chosen on {validation}."]


def _orientation(given: InputSpec) -> list[str]:
    if given.dims == 2:
        return []
    return ["- NIfTI files in any orientation; axes D, H, W point to superior, anterior, right. Results keep the grid."]
