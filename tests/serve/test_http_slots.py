"""How many requests the HTTP door works on at once, and that a place is given back however a request ends."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import httpx2
import numpy as np
import pytest

from d2ed2q.errors import BundleError
from d2ed2q.serve import http_files, http_infer
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import QueueSettings

from .helpers import wait


def asked(node: Node, what: Callable[[httpx2.AsyncClient], Awaitable[None]]) -> None:
    """Does something with the application within one event loop, as a server would."""

    async def run() -> None:
        transport = httpx2.ASGITransport(node.app(), raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            await what(client)

    anyio.run(run)


def tensors(node: Node) -> bytes:
    entry = {"name": "image", "datatype": "FP32", "shape": [1, 3, 16, 16], "data": [0.5] * 768}
    return json.dumps({"inputs": [entry], "outputs": [{"name": "doubt"}]}).encode()


def test_the_page_says_how_many() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "node.md").read_text(encoding="utf-8")
    assert f"too many at once ({http_files._SLOTS} files, {http_infer._SLOTS} `infer`)" in page


def busy(answer: httpx2.Response) -> bool:
    """Whether one was sent away for a while, and told for how long."""
    return answer.status_code == 429 and int(answer.headers["Retry-After"]) > 0 and "at once" in answer.json()["error"]


class Sender:
    """A request whose body comes when it is told to, or breaks off."""

    def __init__(self, body: bytes) -> None:
        self.body, self.go, self.started = body, anyio.Event(), anyio.Event()
        self.breaks = False

    async def parts(self) -> AsyncIterator[bytes]:
        yield self.body[:1]
        self.started.set()
        await self.go.wait()
        if self.breaks:
            raise ConnectionResetError
        yield self.body[1:]


@pytest.mark.parametrize("route", ["segment", "infer"])
def test_beyond_the_places_one_is_sent_away_and_a_place_comes_free_again(
    route: str, node: Node, photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_files if route == "segment" else http_infer, "_SLOTS", 2)
    path = "/segment" if route == "segment" else f"/v2/models/{node.model.manifest.name}/infer"
    body = photo if route == "segment" else tensors(node)
    answers: dict[str, httpx2.Response] = {}

    async def what(client: httpx2.AsyncClient) -> None:
        async def post(name: str, content: Any) -> None:
            answers[name] = await client.post(path, content=content)

        whole, broken = Sender(body), Sender(body)
        async with anyio.create_task_group() as group:
            group.start_soon(post, "whole", whole.parts())
            group.start_soon(post, "broken", broken.parts())
            with anyio.fail_after(60):
                await whole.started.wait()
                await broken.started.wait()
            await post("third", body)
            assert (await client.get("/v2/health/live")).status_code == 200, "others are not held up"
            broken.breaks = True
            broken.go.set()
            with anyio.fail_after(60):
                while "broken" not in answers:
                    await anyio.sleep(0.01)
            await post("after one broke off", body)
            whole.go.set()

    asked(node, what)
    assert busy(answers["third"])
    assert answers["broken"].status_code >= 400
    assert answers["after one broke off"].status_code == 200
    assert answers["whole"].status_code == 200
    assert node.metrics.denied.labels("http", "full")._value.get() == 1


def test_files_that_are_refused_keep_no_place(
    make_node: Callable[..., Node], photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_files, "_SLOTS", 1)
    node = make_node(queue=QueueSettings(waiting=1))
    node.store.add("other", "http", photo)  # nobody works yet: the queue is full
    statuses: list[int] = []

    async def what(client: httpx2.AsyncClient) -> None:
        async def endless() -> AsyncIterator[bytes]:  # without a length that could be looked at
            for _ in range(65):
                yield bytes(1_000_000)

        for body in (b"", endless(), photo, b""):
            statuses.append((await client.post("/segment", content=body)).status_code)

    asked(node, what)
    assert statuses == [400, 413, 429, 400]


def test_tensors_that_are_refused_keep_no_place_and_no_thread(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_infer, "_SLOTS", 1)
    monkeypatch.setattr(http_infer, "_AT_ONCE", 1)
    path, good = f"/v2/models/{node.model.manifest.name}/infer", tensors(node)
    scaled = node.model.predictor.scaled_probabilities
    ways: list[Callable[..., np.ndarray]] = []
    monkeypatch.setattr(node.model.predictor, "scaled_probabilities", lambda *given: ways.pop(0)(*given))

    def fail(error: Exception) -> Callable[..., np.ndarray]:
        def way(*_: object) -> np.ndarray:
            raise error

        return way

    ways += [fail(BundleError(f"{node.model.bundle.path}: its graph cannot be run")), fail(RuntimeError("x")), scaled]
    answers: list[httpx2.Response] = []

    async def what(client: httpx2.AsyncClient) -> None:
        for body in (b"no JSON", good, good, good):
            answers.append(await client.post(path, content=body))

    asked(node, what)
    assert [answer.status_code for answer in answers] == [400, 503, 500, 200]
    assert int(answers[1].headers["Retry-After"]) > 0
    assert answers[1].json() == {"error": "the engine has failed; come back later"}, "where things lie is not told"


def test_few_ask_the_model_at_once_and_the_others_wait_for_them(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    path, body = f"/v2/models/{node.model.manifest.name}/infer", tensors(node)
    outputs, lock, go_on = http_infer._outputs, threading.Lock(), threading.Event()
    running, most = 0, 0

    def counted(*given: Any) -> Any:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go_on.wait(60)
        with lock:
            running -= 1
        return outputs(*given)

    monkeypatch.setattr(http_infer, "_outputs", counted)
    statuses: list[int] = []

    async def what(client: httpx2.AsyncClient) -> None:
        async def post() -> None:
            statuses.append((await client.post(path, content=body)).status_code)

        async with anyio.create_task_group() as group:
            for _ in range(http_infer._SLOTS):
                group.start_soon(post)
            await anyio.to_thread.run_sync(wait, lambda: running == http_infer._AT_ONCE)
            await anyio.sleep(0.5)
            assert busy(await client.post(path, content=body)), "all places are taken by those that wait"
            assert (await client.get("/metrics")).status_code == 200, "threads of other routes are not taken"
            go_on.set()

    asked(node, what)
    assert statuses == [200] * http_infer._SLOTS
    assert most == http_infer._AT_ONCE
