"""Writing an exported model: as a bundle, or only its graph for another runtime."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx

from d2ed2q.data import make_phantom
from d2ed2q.deploy import Bundle, Manifest, Predictor, write_bundle
from d2ed2q.deploy.bundle import CARD, METADATA, MODEL, SAMPLE_INPUT, SAMPLE_OUTPUT
from d2ed2q.deploy.manifest import InputSpec
from d2ed2q.deploy.model_card import markdown_card, monai_metadata
from d2ed2q.deploy.predictor import byte_input
from d2ed2q.files import atomic_path
from d2ed2q.recipes.settings import ExportSettings

__all__ = ["in_memory", "write_export"]


def in_memory(path: Path, manifest: Manifest, model: onnx.ModelProto) -> Bundle:
    """A bundle that was not written yet, to run its graph.

    Args:
        path: named in messages.
        manifest: of the model.
        model: the graph.
    """
    return Bundle(path, manifest, {MODEL: model.SerializeToString()}, "", 0)


def write_export(
    settings: ExportSettings, manifest: Manifest, model: onnx.ModelProto, figures: dict[str, float]
) -> None:
    """Writes ``settings.out`` in ``settings.format``.

    Args:
        settings: of the export.
        manifest: finished.
        model: the graph.
        figures: test figures for the model card, by name.

    Raises:
        StorageError: a file could not be written.
    """
    if settings.format == "onnx":
        onnx.checker.check_model(model, full_check=True)
        for key, value in (("d2ed2q", json.dumps(dataclasses.asdict(manifest.output))), ("version", "1")):
            model.metadata_props.add(key=key, value=value)
        with atomic_path(settings.out) as temporary:
            temporary.write_bytes(model.SerializeToString())
    elif settings.format == "openvino":
        _write_openvino(settings.out, model)
    else:
        image = _sample(manifest.input)
        expected = Predictor(in_memory(settings.out, manifest, model)).raw(byte_input(image, manifest.input.channels))
        arrays = {}
        for name, array in (
            (SAMPLE_INPUT, np.ascontiguousarray(image)),
            (SAMPLE_OUTPUT, np.round(expected * 255).astype(np.uint8)),
        ):
            buffer = io.BytesIO()
            np.save(buffer, array, allow_pickle=False)
            arrays[name] = buffer.getvalue()
        parts = {
            MODEL: model.SerializeToString(),
            METADATA: monai_metadata(manifest, figures),
            CARD: markdown_card(manifest, figures),
            **arrays,
        }
        write_bundle(settings.out, manifest, parts)


def _sample(given: InputSpec) -> np.ndarray:
    """A made-up image, uint8 ``*spatial×C``: a phantom; in a volume the same one in each slice, getting brighter."""
    # A bundle of volumes should not be made of its sample: the probabilities of a cube are many.
    size = max(given.minimum, 64 if given.dims == 2 else 16)
    picture = make_phantom(0, (max(size, 64), max(size, 64))).image
    copies = -(-given.channels // picture.shape[2])
    image: np.ndarray = np.concatenate([picture] * copies, axis=2)[:, :, : given.channels]
    if given.dims == 2:
        return image
    light = np.linspace(0.5, 1, size)[:, None, None, None]
    return np.round(image[None, -size:, -size:] * light).astype(np.uint8)


def _write_openvino(out: Path, model: onnx.ModelProto) -> None:
    import openvino

    graph = openvino.Core().read_model(model.SerializeToString())
    with tempfile.TemporaryDirectory() as folder:
        openvino.save_model(graph, Path(folder) / "model.xml", compress_to_fp16=False)
        for suffix in (".bin", ".xml"):  # the .xml last: where it is, everything is
            with atomic_path(out.with_suffix(suffix)) as temporary:
                shutil.copyfile(Path(folder) / f"model{suffix}", temporary)
