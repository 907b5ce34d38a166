"""What a broker is told of the node itself, by a broker that is none; real ones are in test_peers.py."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from d2ed2q.serve import mqtt, worker
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import MqttSettings

from .helpers import wait


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
    """Every status that was published, and whether it is retained; the last will is the first."""
    heard: list[tuple[str, bool]] = []

    class Broker:
        def __init__(self, *_: Any, will: aiomqtt.Will, identifier: str, **__: Any) -> None:
            assert len(identifier) > len("d2ed2q-d2ed2q-")
            if not heard:
                heard.append((bytes(will.payload).decode(), will.retain))  # type: ignore[arg-type]

        async def __aenter__(self) -> Broker:
            return self

        async def __aexit__(self, *_: object) -> None:
            pass

        async def publish(self, topic: str, payload: bytes, qos: int, retain: bool = False) -> None:
            if topic == "clinic/status":
                heard.append((payload.decode(), retain))

    monkeypatch.setattr(aiomqtt, "Client", Broker)
    monkeypatch.setattr(mqtt, "_AGAIN", 0.1)
    monkeypatch.setattr(worker, "_PAUSE", 0.1)
    return heard


def test_the_status_says_why_the_node_is_not_well_and_when_it_is_again(
    make_node: Callable[..., Node], told: list[tuple[str, bool]], photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = make_node(mqtt=MqttSettings("127.0.0.1", 1, "clinic"))
    with node.running():
        wait(lambda: told == [("offline", True), ("online", True)])
        with monkeypatch.context() as broken:
            broken.setattr(node.model, "recovered", lambda: False)
            node.model._sound = False
            wait(lambda: told[-1] == ("degraded engine", True))
        wait(lambda: told[-1] == ("online", True))

        def full(*_: object) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with monkeypatch.context() as broken:
            job, _ = node.store.add("a", "http", photo)
            broken.setattr("d2ed2q.serve.store.read_job", full)  # what an attempt to take it ends with
            node.worker.wake()
            wait(lambda: told[-1] == ("degraded queue", True))
        wait(lambda: told[-1] == ("online", True))
        wait(lambda: node.store.get(job.id).state == "done")
        assert told.count(("degraded engine", True)) == 1, "nothing is repeated that has just been said"
    assert told[-1] == ("offline", True)


def test_a_part_that_has_ended_is_told(make_node: Callable[..., Node], told: list[tuple[str, bool]]) -> None:
    class Ended:
        alive = False

        def stop(self) -> None:
            pass

    node = make_node(mqtt=MqttSettings("127.0.0.1", 1, "clinic"))
    with node.running():
        node.parts.append(Ended())
        wait(lambda: told[-1:] == [("degraded part", True)])


def test_nodes_of_one_name_are_two_to_the_broker(make_node: Callable[..., Node], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "one")
    names = [
        make_node(mqtt=MqttSettings("127.0.0.1", 1), state=tmp_path / state).parts[-1].identifier
        for state in ("one", "two", "one", "link")
    ]
    assert names[0] == names[2] == names[3], "as after a start anew"
    assert names[0] != names[1]
    assert names[0].startswith("d2ed2q-d2ed2q-")
