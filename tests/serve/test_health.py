"""``--health``: the node that runs with these settings is asked, whatever doors they open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from d2ed2q.cli import main
from d2ed2q.errors import ConfigError
from d2ed2q.serve.command import ServeSettings
from d2ed2q.serve.health import ailment
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings, NodeSettings, TlsSettings, WatchSettings

from .helpers import audited, free_port, served


def at(node: Node, port: int) -> NodeSettings:
    """The node's settings, with the port that the test took for it."""
    assert node.settings.http is not None
    return replace(node.settings, http=replace(node.settings.http, host="0.0.0.0", port=port))


@pytest.mark.parametrize("door", ["http", "https", "certificates"])
def test_a_node_is_asked_by_its_own_settings(
    door: str, make_node: Callable[..., Node], certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = certificate if door == "certificates" else None
    tls = None if door == "http" else TlsSettings(certificate, certificate.with_suffix(".key"), authority)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    node = make_node(http=HttpSettings(tls=tls))
    with served(node) as port:
        assert ailment(at(node, port)) is None
        monkeypatch.setattr(node.model, "recovered", lambda: False)
        node.model._sound = False
        assert "HTTP 503" in (ailment(at(node, port)) or "")
    assert "does not answer" in (ailment(at(node, port)) or "")


def test_a_door_that_does_not_know_the_nodes_own_certificate_is_named(
    make_node: Callable[..., Node], make_certificate: Callable[[str], Path]
) -> None:
    own, authority = make_certificate("own"), make_certificate("authority")
    node = make_node(http=HttpSettings(tls=TlsSettings(own, own.with_suffix(".key"), authority)))
    with served(node) as port:
        assert f"certificates of {authority}" in (ailment(at(node, port)) or "")
    entries = audited(node)
    assert [entry["door"] for entry in entries if entry["event"] == "denied" and entry["reason"] == "tls"] == ["http"]


def test_a_node_that_cannot_be_asked_runs_or_does_not(make_node: Callable[..., Node], tmp_path: Path) -> None:
    node = make_node(http=None, watch=(WatchSettings(tmp_path),))
    assert "no node runs" in (ailment(node.settings) or "")
    with node.running():
        assert ailment(node.settings) is None
    assert "no node runs" in (ailment(node.settings) or "")


def test_the_command_line_ends_with_one_and_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "node.toml"
    config.write_text(f'state = "{tmp_path}"\n[http]\nport = {free_port()}\n')
    for words in (["--health", "--config", str(config)], ["model.d2q", "--config", str(config), "--health"]):
        assert main(["serve", *words]) == 1
        assert "does not answer" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="--health --config"):
        ServeSettings(health=True)
