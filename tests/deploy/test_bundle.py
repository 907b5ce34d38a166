from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.deploy.conftest import Exported

from d2ed2q.deploy import read_bundle, write_bundle
from d2ed2q.deploy.bundle import MANIFEST, MODEL, PARTS
from d2ed2q.deploy.wire import has_external_data
from d2ed2q.errors import BundleError

Entries = dict[str, bytes]


def entries(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {entry.filename: archive.read(entry) for entry in archive.infolist()}


def sealed(path: Path, content: Entries, compression: int = zipfile.ZIP_STORED) -> Path:
    """An archive that ends with a right SHA-256, as anyone can make one."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
        archive.comment = b"0" * 64
    body = buffer.getvalue()[:-64]
    path.write_bytes(body + hashlib.sha256(body).hexdigest().encode())
    return path


def changed_manifest(content: Entries, change: Callable[[dict[str, object]], None]) -> Entries:
    manifest = json.loads(content[MANIFEST])
    change(manifest)
    return content | {MANIFEST: json.dumps(manifest).encode()}


def test_what_was_written_is_read(exported: Exported, tmp_path: Path) -> None:
    bundle = exported.bundle
    assert set(bundle.parts) == set(PARTS)
    assert bundle.model == exported.model.SerializeToString()
    assert bundle.size == exported.path.stat().st_size
    assert bundle.sha256 == hashlib.sha256(exported.path.read_bytes()).hexdigest()
    for name, part in bundle.manifest.parts.items():
        assert part.sha256 == hashlib.sha256(bundle.parts[name]).hexdigest()
        assert part.bytes == len(bundle.parts[name])
    again = write_bundle(tmp_path / "again.d2q", exported.manifest, bundle.parts)
    assert again == exported.manifest
    assert (tmp_path / "again.d2q").read_bytes() == exported.path.read_bytes(), "the same model gives the same bytes"
    image, expected = bundle.sample
    assert image.dtype == np.uint8
    assert expected.shape == (3, 1, *image.shape[:2])


def test_ordinary_tools_open_it(exported: Exported) -> None:
    content = entries(exported.path)
    assert content["model.onnx.gz"][:2] == b"\x1f\x8b"
    assert gzip.decompress(content["model.onnx.gz"]) == exported.bundle.model
    assert json.loads(content[MANIFEST])["format"] == "d2ed2q-bundle"
    metadata = json.loads(exported.bundle.parts["metadata.json"])
    required = {"schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "task"}
    assert required | {"description", "authors", "copyright", "network_data_format", "intended_use"} <= set(metadata)
    assert "not a medical device" in exported.bundle.parts["model_card.md"].decode()


def test_the_codes_are_stored_near_their_entropy(exported: Exported) -> None:
    codes = np.concatenate([weight.codes.numpy().ravel() for weight in exported.weights.values()])
    share = np.unique(codes, return_counts=True)[1] / len(codes)
    entropy = -(share * np.log2(share)).sum() / 8
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31, 9, zlib.Z_HUFFMAN_ONLY)
    stored = len(compressor.compress(codes.tobytes()) + compressor.flush())
    assert stored < 1.05 * entropy * len(codes)
    assert stored < 0.95 * len(zlib.compress(codes.tobytes(), 9)), "the search for repeats would cost bytes"
    floats = 4 * sum(p.numel() for p in exported.ensemble.parameters()) - 4 * len(codes)
    graph_itself = 60_000  # nodes and their names
    assert len(entries(exported.path)["model.onnx.gz"]) < stored + floats + graph_itself


def test_every_flipped_bit_is_refused(exported: Exported, tmp_path: Path) -> None:
    data = exported.path.read_bytes()
    draw = random.Random(0)
    path = tmp_path / "flipped.d2q"
    for _ in range(1000):
        position, bit = draw.randrange(len(data)), draw.randrange(8)
        path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
        with pytest.raises(BundleError):
            read_bundle(path)


@pytest.mark.parametrize("kept", [0, 3, 30, 100, 5000, -1])
def test_a_truncated_bundle_is_refused(kept: int, exported: Exported, tmp_path: Path) -> None:
    path = tmp_path / "cut.d2q"
    path.write_bytes(exported.path.read_bytes()[:kept])
    with pytest.raises(BundleError, match=r"cut\.d2q (is cut off|is not a d2ed2q bundle)"):
        read_bundle(path)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for path, message in (
        (tmp_path / "none.d2q", "there is no bundle"),
        (tmp_path, "is a folder"),
        (tmp_path / "image.png", "is not a d2ed2q bundle"),
        (sealed(tmp_path / "other.zip", {"readme.txt": b"hello"}), "which no bundle has"),
        (sealed(tmp_path / "empty.zip", {"metadata.json": b"{}"}), "no manifest.json"),
    ):
        with pytest.raises(BundleError, match=message):
            read_bundle(path)


@pytest.mark.parametrize("name", ["../model.onnx", "/etc/passwd", "model.onnx/../../x", "run.py", "..\\model.onnx"])
def test_a_path_that_leaves_its_folder_is_refused(name: str, exported: Exported, tmp_path: Path) -> None:
    path = sealed(tmp_path / "hostile.d2q", entries(exported.path) | {name: b"x"})
    with pytest.raises(BundleError, match="holds the path"):
        read_bundle(path)
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.d2q"]


def test_absurd_sizes_are_refused(exported: Exported, tmp_path: Path) -> None:
    content = entries(exported.path)

    def claim(size: int) -> Callable[[dict[str, object]], None]:
        def change(manifest: dict[str, object]) -> None:
            manifest["parts"][MODEL]["bytes"] = size  # type: ignore[index]

        return change

    for size in (2**40, 2**30, -1):
        path = sealed(tmp_path / "bomb.d2q", changed_manifest(content, claim(size)))
        with pytest.raises(BundleError, match=r"claims .* bytes, which cannot be|cannot be"):
            read_bundle(path)
    # A bomb that says what it is: a gigabyte of zeros in a megabyte.
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(bytes(2**20)) for _ in range(64)) + compressor.flush()
    path = sealed(tmp_path / "bomb.d2q", changed_manifest(content | {"model.onnx.gz": bomb}, claim(1000)))
    with pytest.raises(BundleError, match="not what the manifest says"):
        read_bundle(path)
    path = sealed(tmp_path / "deflated.d2q", content, zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match="compressed as no bundle's part is"):
        read_bundle(path)


def test_many_entries_and_empty_pieces_are_refused_at_once(exported: Exported, tmp_path: Path) -> None:
    content = entries(exported.path)
    path = sealed(tmp_path / "many.d2q", content | {f"x{number}": b"" for number in range(200)})
    with pytest.raises(BundleError, match="holds more than a bundle's few parts"):
        read_bundle(path)
    # A ZIP64 archive has its list elsewhere: what the plain record says does not count then.
    hidden = bytearray(sealed(tmp_path / "large.d2q", content).read_bytes()[:-64])
    hidden[-22:-22] = b"PK\x06\x07" + bytes(16)
    (tmp_path / "large.d2q").write_bytes(hidden + hashlib.sha256(hidden).hexdigest().encode())
    with pytest.raises(BundleError, match="holds more than a bundle's few parts"):
        read_bundle(tmp_path / "large.d2q")
    empty = zlib.compressobj(wbits=31).flush() * 100
    path = sealed(tmp_path / "empty.d2q", content | {"model.onnx.gz": empty + content["model.onnx.gz"]})
    with pytest.raises(BundleError, match="a piece of it is empty"):
        read_bundle(path)


def test_a_newer_or_contradictory_manifest_is_refused(exported: Exported, tmp_path: Path) -> None:
    content = entries(exported.path)
    output = json.loads(content[MANIFEST])["output"]

    def set_to(*keys: str, value: object) -> Callable[[dict[str, object]], None]:
        def change(manifest: dict[str, object]) -> None:
            target = manifest
            for key in keys[:-1]:
                target = target[key]  # type: ignore[assignment]
            target[keys[-1]] = value

        return change

    for change, message in (
        (set_to("version", value=5), "format version 5, this d2ed2q reads up to 4; upgrade"),
        (set_to("version", value=0), "no format version"),
        (set_to("version", value=None), "no format version"),
        (set_to("format", value="zip"), "does not say so"),
        (set_to("output", "thresholds", "meta", value=2.0), "contradicts itself"),
        (set_to("output", "thresholds", "meta", value=float("nan")), "NaN is no number"),
        (set_to("output", "temperature", value=1e-30), "contradicts itself"),
        (set_to("output", "classes", value=["a", "a"]), "contradicts itself"),
        (set_to("input", "resize", value=[65536, 65536]), "contradicts itself"),
        (set_to("weights", "learner_parameters", value=0), "contradicts itself"),
        (set_to("output", "prediction", value="best"), "contradicts itself"),
        (set_to("output", "learners", value=10**9), "contradicts itself"),
        (set_to("output", "learners", value=1), "contradicts itself"),
        (set_to("output", "learners", value=0), "contradicts itself"),
        (set_to("output", "temperature", value=0), "contradicts itself"),
        (set_to("input", "stride", value=0), "contradicts itself"),
        (set_to("input", "channels", value="three"), "damaged"),
        (set_to("output", "objects", value={"smoothing": 1e8}), "contradicts itself"),
        (set_to("output", value={**output, "objects": {}, "cleaning": {}}), "contradicts itself"),
        (set_to("output", value={**output, "classes": ["a", "b", "c"], "cleaning": {}}), "contradicts itself"),
        (set_to("parts", "model.onnx", "sha256", value="0" * 64), "not what the manifest says"),
        (set_to("parts", "model.onnx", "compressed", value=False), "disagree on"),
    ):
        path = sealed(tmp_path / "odd.d2q", changed_manifest(content, change))
        with pytest.raises(BundleError, match=message):
            read_bundle(path)
    for missing in ("model_card.md.gz", "sample_input.npy.gz"):
        path = sealed(tmp_path / "odd.d2q", {name: data for name, data in content.items() if name != missing})
        with pytest.raises(BundleError, match="disagree on"):
            read_bundle(path)
    for text in (b"{", b"[" * 200_000, content[MANIFEST].replace(b'"temperature": ', b'"temperature": 1e999, "x": ')):
        path = sealed(tmp_path / "odd.d2q", content | {MANIFEST: text})
        with pytest.raises(BundleError, match="not JSON"):
            read_bundle(path)


def test_a_graph_that_refers_to_other_files_is_refused(exported: Exported, tmp_path: Path) -> None:
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../etc/passwd")
    path = tmp_path / "external.d2q"
    write_bundle(path, exported.manifest, dict(exported.bundle.parts) | {MODEL: model.SerializeToString()})
    with pytest.raises(BundleError, match="files outside of the bundle"):
        read_bundle(path)


def field(number: int, content: bytes, length: bytes | None = None) -> bytes:
    """A length-delimited field of a protocol buffer."""
    return bytes([number << 3 | 2]) + (bytes([len(content)]) if length is None else length) + content


def test_external_data_is_found_however_it_is_written(exported: Exported) -> None:
    location = field(13, field(1, b"location", b"\x88\x00") + field(2, b"../x"))  # a length in two bytes
    for tensor, external in (
        (location, True),
        (b"\x70\x01", True),  # data_location: EXTERNAL
        (b"\x70\x81\x00", True),
        (b"\x70\x00", False),  # data_location: DEFAULT
        (field(8, b"name"), False),
    ):
        in_attribute = field(1, field(5, field(5, tensor)))
        for graph in (
            field(5, tensor),
            in_attribute,
            field(15, field(1, tensor)),
            field(1, field(5, field(6, field(5, tensor)))),
        ):
            assert has_external_data(field(7, graph)) is external
    assert not has_external_data(exported.bundle.model)
    for broken in (b"\x3a", b"\x3a\x05ab", b"\xff" * 12, b"\x3b", field(7, b"\x0a")):
        with pytest.raises(ValueError, match=r"\w"):
            has_external_data(broken)


def test_hostile_samples_are_refused(exported: Exported, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    header = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little")
    huge = header + b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999, 9999), }".ljust(117) + b"\n"
    odd = header + b"(((((".ljust(117) + b"\n"
    for content in (b"", b"x", buffer.getvalue(), huge, odd):
        path = tmp_path / "sample.d2q"
        write_bundle(path, exported.manifest, dict(exported.bundle.parts) | {"sample_output.npy": content})
        with pytest.raises(BundleError, match="sample is damaged"):
            _ = read_bundle(path).sample


def test_a_sample_that_is_pickled_is_not_loaded(exported: Exported, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = tmp_path / "pickle.d2q"
    write_bundle(path, exported.manifest, dict(exported.bundle.parts) | {"sample_input.npy": buffer.getvalue()})
    with pytest.raises(BundleError, match="sample is damaged"):
        _ = read_bundle(path).sample
