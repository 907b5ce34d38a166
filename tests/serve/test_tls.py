from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from d2ed2q.errors import ConfigError
from d2ed2q.serve.check import check_node
from d2ed2q.serve.node import Node
from d2ed2q.serve.settings import HttpSettings, TlsSettings
from d2ed2q.serve.tls import client_context, server_context


def test_with_an_authority_it_alone_is_believed(certificate: Path) -> None:
    key = certificate.with_suffix(".key")
    for make in (client_context, server_context):
        context = make(TlsSettings(certificate, key, certificate))
        assert [dict(one["subject"][0])["commonName"] for one in context.get_ca_certs()] == ["own"]  # type: ignore[arg-type]
        assert context.verify_mode == ssl.CERT_REQUIRED
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert client_context(TlsSettings(certificate, key)).verify_mode == ssl.CERT_REQUIRED
    assert client_context(TlsSettings(certificate, key)).check_hostname
    assert server_context(TlsSettings(certificate, key)).verify_mode == ssl.CERT_NONE
    with pytest.raises(ConfigError, match="cannot be used"):
        client_context(TlsSettings(certificate, certificate))


def test_the_check_looks_at_the_certificate_of_http(make_node: Callable[..., Node], certificate: Path) -> None:
    http = HttpSettings(port=0, tls=TlsSettings(certificate, certificate))
    with pytest.raises(ConfigError, match="cannot be used"):
        check_node(make_node(http=http))
    http = HttpSettings(port=0, tls=TlsSettings(certificate, certificate.with_suffix(".key")))
    assert any("can be had" in line for line in check_node(make_node(http=http)))
