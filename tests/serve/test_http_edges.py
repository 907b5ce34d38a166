"""The HTTP door where something is amiss: refused images, other models, slow clients, parts that end."""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable
from dataclasses import replace

import anyio
import numpy as np
import pytest
from fastapi import HTTPException, Request
from PIL import Image
from starlette.testclient import TestClient

from d2ed2q.errors import BundleError, D2ED2QError, StorageError
from d2ed2q.serve import door, http_infer, worker
from d2ed2q.serve.access import SameOrigin, new_token
from d2ed2q.serve.node import Node
from d2ed2q.serve.results import Kept
from d2ed2q.serve.settings import HttpSettings, QueueSettings

from .helpers import client_of, free_port, wait


def test_an_uncertain_image_is_refused(make_node: Callable[..., Node], photo: bytes, picture: np.ndarray) -> None:
    with make_node(refuse=0.0).running() as node:
        client = client_of(node)
        answer = client.post("/segment", content=photo)
        summary = answer.json()
        assert (summary["state"], summary["refused"]) == ("refused", True)
        assert answer.headers["X-Refused"] == "true"
        assert answer.headers["X-Model-SHA256"] == node.model.bundle.sha256
        for accept in ("image/png", "application/dicom"):
            unasked = client.post("/segment", content=photo, headers={"Accept": accept})
            assert unasked.status_code == 422
            assert unasked.headers["X-Refused"] == "true"
        for asked in (
            client.post("/segment?result=mask.png", content=photo),
            client.get(f"/jobs/{summary['job']}/mask.png"),
        ):
            assert asked.status_code == 200
            assert asked.headers["X-Refused"] == "true"
            said = Image.open(io.BytesIO(asked.content)).info
            assert (said["Refused"], said["Model-SHA256"]) == ("yes", node.model.bundle.sha256)
            assert "research use only" in said["Comment"]
        image = picture.transpose(2, 0, 1)[None].astype(np.float32) / 255
        tensor = {"name": "image", "datatype": "FP32", "shape": list(image.shape), "data": image.ravel().tolist()}
        wanted = {"inputs": [tensor], "outputs": [{"name": "doubt"}, {"name": "refused"}]}
        inferred = client.post(f"/v2/models/{node.model.manifest.name}/infer", json=wanted).json()
        assert inferred["outputs"][1] == {"name": "refused", "datatype": "BOOL", "shape": [1], "data": [True]}
        assert inferred["parameters"] == {"refused": True}
        assert 'd2ed2q_jobs_total{door="http",state="refused"} 2.0' in client.get("/metrics").text
    (entry,) = (e for e in map(json.loads, node.audit.path.read_text().splitlines()) if e["event"] == "inferred")
    assert (entry["client"], entry["refused"], entry["model"]) == ("anybody", 1, node.model.bundle.sha256)
    assert entry["doubt"] == [pytest.approx(inferred["outputs"][0]["data"][0], abs=1e-4)]


def test_results_of_another_model_are_not_given_out_as_this_ones(make_node: Callable[..., Node], photo: bytes) -> None:
    with make_node().running() as node:
        client = client_of(node)
        job = client.post("/segment", content=photo).json()["job"]
        path = node.store.results_of(job)
        kept = Kept.load(path)
        replace(kept, summary={**kept.summary, "model_sha256": "another"}).save(path)
        answer = client.get(f"/jobs/{job}/mask.png")
        assert answer.status_code == 410
        assert "another model" in answer.json()["error"]


def test_what_is_forgotten_meanwhile_is_no_error_of_the_node(make_node: Callable[..., Node], photo: bytes) -> None:
    with make_node().running() as node:
        client = client_of(node, raise_server_exceptions=True)
        job = client.post("/segment", content=photo).json()["job"]
        node.store.input_of(job).unlink()
        assert client.get(f"/jobs/{job}").status_code == 404
        assert client.get(f"/jobs/{job}/mask.png").status_code == 507
        node.store.forget(keep=0, passed=0)
        assert client.get(f"/jobs/{job}/mask.png").status_code == 404


def test_what_nobody_thought_of_is_told_without_its_message(
    make_node: Callable[..., Node], photo: bytes, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_node().running() as node:
        job = client_of(node).post("/segment", content=photo).json()["job"]

        def fail(*_: object) -> bytes:
            raise RuntimeError("Doe^Jane")

        monkeypatch.setattr(node, "render", fail)
        answer = client_of(node).get(f"/jobs/{job}/mask.png")
    assert (answer.status_code, answer.json()) == (500, {"error": "internal error"})
    assert "RuntimeError" in caplog.text
    assert "Doe" not in caplog.text


def test_a_body_that_does_not_come_is_given_up(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_SECONDS", 0.2)

    async def never() -> dict[str, object]:
        await anyio.sleep(30)
        raise AssertionError

    async def ask() -> int:
        try:
            await door.read_body(Request({"type": "http"}, never), 1)
        except HTTPException as error:
            return error.status_code
        return 0

    assert anyio.run(ask) == 408


def test_requests_for_tensors_are_counted_before_their_bodies_are_read(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_infer, "_SLOTS", 0)
    client = client_of(node)
    answer = client.post(f"/v2/models/{node.model.manifest.name}/infer", content=b"no JSON at all")
    assert answer.status_code == 429


def test_libraries_do_not_warn_of_what_they_see(make_node: Callable[..., Node]) -> None:
    make_node()
    for module in ("pydicom.valuerep", "highdicom.seg.sop", "pynetdicom.dul"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.warn_explicit("Invalid value Doe^Jane", UserWarning, "x.py", 1, module=module)
        assert not caught


def gauges(client: TestClient) -> dict[str, float]:
    """What the counters say of the node's health."""
    found = re.findall(r"^d2ed2q_(ready|engine_sound) (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def test_the_node_is_not_ready_when_a_part_of_it_has_ended(node: Node, client: TestClient) -> None:
    class Ended:
        alive = False

        def stop(self) -> None:
            pass

    assert gauges(client) == {"ready": 1, "engine_sound": 1}
    node.parts.append(Ended())
    assert client.get("/v2/health/ready").status_code == 503
    assert gauges(client) == {"ready": 0, "engine_sound": 1}


def test_a_node_whose_engine_fails_is_not_ready_until_it_answers_again(
    node: Node, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_PAUSE", 0.1)

    def fail(*_: object) -> np.ndarray:
        raise BundleError("the engine does not answer")

    place = f"/v2/models/{node.model.manifest.name}"
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 8, 8], "data": [0.5] * 192}
    assert client.get("/v2/health/ready").status_code == 200
    with monkeypatch.context() as broken:
        broken.setattr(node.model.predictor, "raw", fail)
        assert client.post(f"{place}/infer", json={"inputs": [entry]}).status_code == 503
        for ready in ("/v2/health/ready", f"{place}/ready"):
            answer = client.get(ready)
            assert (answer.status_code, answer.json()["ready"]) == (503, False)
        assert gauges(client) == {"ready": 0, "engine_sound": 0}
        assert client.get("/v2/health/live").status_code == 200
    wait(lambda: client.get("/v2/health/ready").status_code == 200)
    assert gauges(client) == {"ready": 1, "engine_sound": 1}
    assert client.post(f"{place}/infer", json={"inputs": [entry]}).status_code == 200


def test_a_node_whose_disk_is_full_is_not_ready_though_it_has_nothing_to_do(
    node: Node, client: TestClient, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_PAUSE", 0.1)

    def full(*_: object) -> None:
        raise StorageError("the disk is full")

    assert client.get("/v2/health/ready").status_code == 200
    with monkeypatch.context() as broken:
        broken.setattr("d2ed2q.serve.store.atomic_path", full)
        assert client.post("/segment", content=photo).status_code == 507
        assert node.trouble == "queue"
        wait(lambda: node.worker._blocked)
        assert client.get("/v2/health/ready").status_code == 503
    wait(lambda: client.get("/v2/health/ready").status_code == 200)  # without anybody having sent anything
    assert node.trouble is None
    assert not list((node.settings.state / "inputs").iterdir())
    assert client.post("/segment", content=photo).status_code == 200


def test_an_engine_that_fails_is_not_the_images_fault(
    make_node: Callable[..., Node], photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make_node(queue=QueueSettings(attempts=2)).running() as node:
        client = client_of(node)
        routes = client.get("/openapi.json").json()["paths"]

        def fail(*_: object) -> np.ndarray:
            raise BundleError(f"{node.model.bundle.path} does not answer")

        for error, said in ((fail, "the model does not answer"), (lambda *_: 1 / 0, "ZeroDivisionError")):
            with monkeypatch.context() as broken:
                broken.setattr(node.model, "segment", error)
                failed = client.post("/segment", content=photo)
            assert failed.status_code == 503
            assert int(failed.headers["Retry-After"]) > 0
            assert said in failed.json()["error"]
        asked = client.get("/jobs/1")
        assert asked.status_code == 503
        assert "Retry-After" not in asked.headers, "asking again is not sending again"
        for route, method in (("/segment", "post"), ("/jobs/{job}", "get"), ("/jobs/{job}/{result}", "get")):
            assert "503" in routes[route][method]["responses"]
        assert client.post("/segment", content=photo[:200]).status_code == 422, "the image's own fault"
        answer = client.post("/segment", content=photo)
        assert (answer.status_code, answer.json()["state"], answer.headers["X-Job"]) == (200, "done", "1")


def test_a_door_that_closes_by_itself_is_an_error(
    make_node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("uvicorn.Server.run", lambda self, sockets: None)
    with pytest.raises(D2ED2QError, match="closed by itself"):
        make_node(http=HttpSettings(port=free_port())).run()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:8080"}, 200),
        ({"Host": "[::1]:8080", "Origin": "http://[::1]:8080"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "retina.clinic.example", "Origin": "https://retina.clinic.example"}, 200),
        ({"Host": "localhost:8080", "Origin": "https://retina.clinic.example"}, 200),
        ({"Host": "evil.example:8080"}, 421),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "[::1"}, 421),
        ({"Host": ""}, 421),
        ({"Host": "localhost:8080", "Origin": "http://evil.example"}, 403),
        ({"Host": "localhost:8080", "Origin": "http://localhost:3000"}, 403),
        ({"Host": "localhost:8080", "Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_do_not_ask_a_node_that_asks_for_no_token(
    headers: dict[str, str], status: int, make_node: Callable[..., Node], photo: bytes
) -> None:
    http = HttpSettings(names=("Retina.Clinic.Example",))
    with make_node(http=http).running() as node:
        client = client_of(node)
        answers = [client.get("/v2/health/live", headers=headers)]
        if status != 200:
            answers.append(client.post("/segment", content=photo, headers=headers))
        assert [answer.status_code for answer in answers] == [status] * len(answers)
        assert status == 200 or "http.names" in answers[-1].json()["error"]
        assert ('d2ed2q_denied_total{door="http",reason="origin"} 2.0' in node.metrics.text().decode()) == (
            status != 200
        )


def test_who_needs_a_token_may_come_by_any_name(make_node: Callable[..., Node]) -> None:
    token, digest = new_token()
    headers = {"Host": "retina.clinic.example", "Origin": "https://viewer.example", "Authorization": f"Bearer {token}"}
    with make_node(http=HttpSettings(tokens={"viewer": digest})).running() as node:
        assert TestClient(node.app()).get("/v2/health/ready", headers=headers).status_code == 200
    away = SameOrigin(local=False)
    assert away.refuses({"host": "node.clinic.example"}) is None, "who is asked for a certificate may have any name"
    refused = away.refuses({"host": "node.clinic.example", "origin": "https://evil.example"})
    assert refused is not None
    assert refused[0] == 403
    assert SameOrigin(local=True).refuses({}) is None, "a program of HTTP/1.0"
