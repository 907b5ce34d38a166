from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from importlib.resources import files

import numpy as np
import pydicom
import pytest
from PIL import Image
from starlette.testclient import TestClient

from d2ed2q.data.intensity import PERCENTILE
from d2ed2q.errors import DataError
from d2ed2q.serve.access import new_token
from d2ed2q.serve.node import Node
from d2ed2q.serve.oip import OUTPUTS, parse_infer
from d2ed2q.serve.settings import HttpSettings, QueueSettings

from ..data.dicom_files import OP8, as_bytes, make_dicom
from .conftest import png
from .helpers import audited, client_of


def as_image(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_mandatory_routes_answer(client: TestClient, node: Node) -> None:
    name, version = node.model.manifest.name, node.model.bundle.sha256[:16]
    assert client.get("/v2").json()["extensions"] == ["binary_tensor_data"]
    assert client.get("/v2/health/live").json() == {"live": True}
    assert client.get("/v2/health/ready").json() == {"ready": True}
    for place in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
        described = client.get(place).json()
        assert described["versions"] == [version]
        assert [tensor["name"] for tensor in described["outputs"]] == list(OUTPUTS)
        assert client.get(f"{place}/ready").json()["ready"]
    assert client.get("/v2/models/other").status_code == 404
    assert client.get(f"/v2/models/{name}/versions/7").status_code == 404


def test_tensors_give_what_the_predictor_gives(client: TestClient, node: Node, picture: np.ndarray) -> None:
    image = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
    url = f"/v2/models/{node.model.manifest.name}/infer"
    expected = node.model.predictor(picture, "none")  # its field of view is found, as in a file
    entry = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
    wanted = [{"name": "mask"}, {"name": "doubt"}]
    answer = client.post(url, json={"id": "7", "inputs": [entry], "outputs": wanted}).json()
    assert answer["id"] == "7"
    assert answer["model_name"] == node.model.manifest.name
    assert [output["name"] for output in answer["outputs"]] == ["mask", "doubt"]
    assert answer["outputs"][0]["shape"] == [1, *picture.shape[:2]]
    assert answer["outputs"][0]["datatype"] == "UINT8"

    del entry["data"]
    header = json.dumps(
        {
            "inputs": [entry | {"parameters": {"binary_data_size": image.nbytes}}],
            "parameters": {"binary_data_output": True},
            "outputs": [{"name": "probability"}, {"name": "learners"}],
        }
    ).encode()
    binary = client.post(
        url, content=header + image.tobytes(), headers={"Inference-Header-Content-Length": str(len(header))}
    )
    length = int(binary.headers["Inference-Header-Content-Length"])
    described = json.loads(binary.content[:length])["outputs"]
    values, rest = [], binary.content[length:]
    for output in described:
        size = output["parameters"]["binary_data_size"]
        values.append(np.frombuffer(rest[:size], "<f4").reshape(output["shape"]))
        rest = rest[size:]
    assert not rest
    assert len(values) == 2
    assert np.allclose(values[1][0], expected.learners, atol=1e-6)
    assert np.allclose(values[0][0], expected.probability, atol=1e-6)


@pytest.mark.parametrize("outputs", [{}, {"outputs": []}])
def test_who_names_no_outputs_gets_all(outputs: dict[str, object], client: TestClient, node: Node) -> None:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    url = f"/v2/models/{node.model.manifest.name}/infer"
    listed = client.post(url, json={"inputs": [entry]} | outputs).json()["outputs"]
    assert [output["name"] for output in listed] == list(OUTPUTS)
    assert all("data" in output for output in listed)
    asked = {"inputs": [entry], "parameters": {"binary_data_output": True}} | outputs
    binary = client.post(url, json=asked)
    head = binary.content[: int(binary.headers["Inference-Header-Content-Length"])]
    described = json.loads(head)["outputs"]
    assert [output["name"] for output in described] == list(OUTPUTS)
    sizes = [output["parameters"]["binary_data_size"] for output in described]
    assert len(binary.content) == len(head) + sum(sizes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": []}, "one input"),
        ({"inputs": [{"name": "x"}]}, "the model's is image"),
        ({"outputs": [{"name": "x"}]}, "no output 'x'"),
        ({"outputs": {}}, "list of objects"),
        ({"id": 3}, "id must be a string"),
        ({"parameters": {"tta": "x"}}, "tta"),
    ],
)
def test_what_is_no_inference_is_named(change: dict[str, object], message: str, client: TestClient, node: Node) -> None:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    answer = client.post(f"/v2/models/{node.model.manifest.name}/infer", json={"inputs": [entry]} | change)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"datatype": "FP16"}, "FP32"),
        ({"shape": [1, 3, 8]}, "four positive"),
        ({"shape": [1, 3, -1, 8]}, "four positive"),
        ({"shape": [1, 1, 8, 8]}, "3 channels"),
        ({"shape": [100, 3, 8, 8]}, "at most 64"),
        ({"shape": [1, 3, 1 << 14, 1 << 14]}, "pixels"),
        ({"shape": [1, 3, 1, 1 << 15]}, "along a side"),
        ({"shape": [1, 3, 2048, 2048], "datatype": "UINT8", "data": None}, "needs data"),
        ({"data": [0.5] * 5}, "says 192 numbers"),
        ({"data": None}, "needs data"),
        ({"data": [["a"]]}, "no numbers"),
        ({"data": [2.0] * 192}, "from 0 to 1"),
        ({"parameters": {"binary_data_size": 768}}, "binary_data_size"),
    ],
)
def test_what_is_no_tensor_is_named(change: dict[str, object], message: str, client: TestClient, node: Node) -> None:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192} | change
    answer = client.post(f"/v2/models/{node.model.manifest.name}/infer", json={"inputs": [entry]})
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_lengths_and_answers_that_are_too_long_are_refused(client: TestClient, node: Node) -> None:
    url = f"/v2/models/{node.model.manifest.name}/infer"
    headers = {"Inference-Header-Content-Length": "9" * 5000}
    assert client.post(url, content=b"{}", headers=headers).status_code == 400
    image = np.zeros((1, 3, 2048, 2048), np.uint8)
    entry = {"name": "image", "datatype": "UINT8", "shape": list(image.shape)}
    header = {"inputs": [entry | {"parameters": {"binary_data_size": image.nbytes}}], "outputs": [{"name": "learners"}]}
    head = json.dumps(header).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    answer = client.post(url, content=head + image.tobytes(), headers=headers)
    assert answer.status_code == 400
    assert "ask for binary_data" in answer.json()["error"]


def test_a_file_in_a_result_out(client: TestClient, node: Node, picture: np.ndarray, photo: bytes) -> None:
    expected = node.model.segment(picture).prediction
    answer = client.post("/segment", content=photo)
    assert answer.headers["X-Research-Use-Only"]
    summary = answer.json()
    assert summary["state"] == "done"
    assert summary["model_sha256"] == node.model.bundle.sha256
    assert sum(summary["pixels"].values()) == 96 * 80
    assert summary["doubt"] == pytest.approx(expected.doubt, abs=1e-3)
    mask = client.post("/segment", content=photo, headers={"Accept": "image/png"})
    assert mask.headers["X-Job"] == str(summary["job"]), "the same image is segmented once"
    assert np.array_equal(as_image(mask.content) > 0, expected.mask > 0)
    for place in summary["results"]:
        found = client.get(place)
        assert found.status_code == 200
        if place.endswith(".png"):
            assert as_image(found.content).shape[:2] == picture.shape[:2]
    assert np.array_equal(as_image(client.get(f"/jobs/{summary['job']}/image.png").content), picture)
    read = [entry for entry in audited(node) if entry["event"] == "read"]
    assert (read[-1]["job"], read[-1]["result"], read[-1]["client"]) == (summary["job"], "image.png", "anybody")
    assert len(read) == 2 + sum(place.endswith(".png") for place in summary["results"])
    assert client.get(f"/jobs/{summary['job']}").json() == summary
    other = client.post("/segment?result=overlay.png&tta=flips", content=photo)
    assert other.headers["X-Job"] != str(summary["job"])
    assert client.get("/jobs/99").status_code == 404
    assert client.get("/jobs/0").status_code == 422
    assert client.get(f"/jobs/{summary['job']}/other.png").status_code == 404
    assert client.get(f"/jobs/{summary['job']}/segmentation.dcm").status_code == 404
    text = client.get("/metrics").text
    assert 'd2ed2q_jobs_total{door="http",state="done"} 2.0' in text


def test_what_cannot_be_segmented_is_named(client: TestClient, node: Node, photo: bytes) -> None:
    assert client.post("/segment", content=b"").status_code == 400
    broken = client.post("/segment", content=photo[:200])
    assert broken.status_code == 422
    assert str(node.settings.state) not in broken.text, "where the node keeps things is nobody's business"
    text = client.post("/segment", content=b"no image at all")
    assert text.status_code == 422
    assert client.post("/segment", content=photo, headers={"Accept": "text/csv"}).status_code == 406
    assert client.post("/segment?result=x", content=photo).status_code == 404
    assert client.post("/segment?tta=all", content=photo).status_code == 422
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, format="PNG")
    assert client.post("/segment", content=bomb.getvalue()).status_code == 422
    line = io.BytesIO()
    Image.new("1", (20_000, 1)).save(line, format="PNG")
    answer = client.post("/segment", content=line.getvalue())
    assert answer.status_code == 422
    assert "along a side" in answer.json()["error"]


def test_nobody_unknown_nothing_too_large_and_nobody_too_often(make_node: Callable[..., Node], photo: bytes) -> None:
    token, digest = new_token()
    http = HttpSettings(tokens={"pacs": digest}, largest_mb=1, per_minute=4)
    with make_node(http=http).running() as node:
        client = client_of(node)
        assert client.get("/v2/health/live").status_code == 200, "whether it lives is no secret"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {token}"}):
            assert client.post("/segment", content=photo, headers=headers).status_code == 401
        known = {"Authorization": f"Bearer {token}"}
        assert client.post("/segment", content=bytes(1_000_001), headers=known).status_code == 413

        def parts() -> Iterator[bytes]:  # without a length that could be looked at
            for _ in range(11):
                yield bytes(100_000)

        assert client.post("/segment", content=parts(), headers=known).status_code == 413
        assert client.post("/segment", content=photo, headers=known).status_code == 200
        statuses = [client.get("/jobs/1", headers=known).status_code for _ in range(4)]
        assert statuses[-1] == 429
    entries = audited(node)
    denied = [(entry["reason"], entry["client"]) for entry in entries if entry["event"] == "denied"]
    assert [reason for reason, _ in denied[:5]] == ["token"] * 3 + ["size"] * 2
    assert {reason for reason, _ in denied[5:]} == {"rate"}
    assert {client for _, client in denied} == {"testclient"}
    assert token not in node.audit.path.read_text()


def test_a_full_queue_sends_away(make_node: Callable[..., Node], photo: bytes) -> None:
    node = make_node(queue=QueueSettings(waiting=1))  # nobody works: what is accepted waits
    client = client_of(node)
    node.store.add("other", "http", photo)
    answer = client.post("/segment", content=photo)
    assert answer.status_code == 429
    assert int(answer.headers["Retry-After"]) > 0
    assert client.get("/v2/health/ready").status_code == 503


def test_bytes_are_not_taken_for_intensities_of_another_rule(node: Node) -> None:
    entry = {"name": "image", "datatype": "UINT8", "shape": [1, 3, 8, 8], "data": [255] * 192}
    body, given = json.dumps({"inputs": [entry]}).encode(), node.model.manifest.input
    assert (parse_infer(body, None, given, 64, 8).images == 1).all()
    with pytest.raises(DataError, match=r"must be FP32 in .* by the rule percentile"):
        parse_infer(body, None, replace(given, intensity=PERCENTILE), 64, 8)


def test_the_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    for name in ("index.html", "page.js", "png.js", "page.css"):
        text = (files("d2ed2q.serve") / "static" / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|@import|//cdn", text)
        assert client.get(f"/static/{name}").status_code == 200
    assert client.get("/static/../http.py").status_code == 404
    card = client.get("/card").json()
    assert card["classes"][0] == "background"
    assert "Research use only" in card["card"]


def test_what_was_sent_before_is_there_after_a_restart(make_node: Callable[..., Node], photo: bytes) -> None:
    with make_node().running() as node:
        first = client_of(node).post("/segment", content=photo).json()
    with make_node().running() as node:
        client = client_of(node)
        again = client.post("/segment", content=photo).json()
        assert again["job"] == first["job"]
        repeated = json.loads(node.audit.path.read_text().splitlines()[-1])
        assert (repeated["event"], repeated["door"], repeated["client"]) == ("repeated", "http", "anybody")
        assert client.post("/segment", content=png(np.zeros((40, 40, 3), np.uint8))).json()["job"] != first["job"]


def test_another_augmentation_gives_another_instance(client: TestClient, picture: np.ndarray) -> None:
    image = as_bytes(make_dicom(picture, OP8))

    def instances(tta: str) -> list[str]:
        names = ("segmentation", "overlay")
        asked = [client.post(f"/segment?result={name}.dcm&tta={tta}", content=image) for name in names]
        return [str(pydicom.dcmread(io.BytesIO(answer.content)).SOPInstanceUID) for answer in asked]

    none, flips = instances("none"), instances("flips")
    assert none == instances("none")
    assert not set(none) & set(flips)


def test_a_dicom_result_is_the_same_file_every_time(client: TestClient, picture: np.ndarray) -> None:
    image = as_bytes(make_dicom(picture, OP8, TimezoneOffsetFromUTC="+0000"))
    for name in ("segmentation", "overlay"):
        first = client.post(f"/segment?result={name}.dcm", content=image)
        again = client.get(f"/jobs/{first.headers['X-Job']}/{name}.dcm")
        assert first.status_code == again.status_code == 200
        assert first.content == again.content, "one instance UID, one file"
    made = pydicom.dcmread(io.BytesIO(client.get(f"/jobs/{first.headers['X-Job']}/segmentation.dcm").content))
    said = datetime.strptime(made.ContentDate + made.ContentTime, "%Y%m%d%H%M%S.%f").replace(tzinfo=timezone.utc)
    assert abs(datetime.now(timezone.utc) - said) < timedelta(minutes=10)
