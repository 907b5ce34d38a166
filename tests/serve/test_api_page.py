from __future__ import annotations

import re
from html import unescape

from fastapi import FastAPI, Query
from fastapi.testclient import TestClient

from d2ed2q.serve.api_page import api_page


def test_the_page_has_every_operation_of_the_document_and_nothing_from_elsewhere(client: TestClient) -> None:
    answer = client.get("/docs")
    assert answer.headers["content-type"].startswith("text/html")
    assert "Research use only" in answer.text
    assert not re.search(r"<script|https?://|//cdn", answer.text)
    document = client.get("/openapi.json").json()
    headings = [unescape(found) for found in re.findall(r"<h3><code>(.*?)</code></h3>", answer.text)]
    operations = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(headings) == sorted(operations)
    assert "POST /segment" in headings
    (segment,) = (part for part in answer.text.split("<section>") if "POST /segment" in part)
    for word in ("query: tta", "none|flips|dihedral", "<code>507</code>"):
        assert word in segment
    assert "<code>application/dicom</code>" in segment
    assert "`" not in answer.text


def test_what_the_document_says_is_escaped() -> None:
    app = FastAPI(title="<b>bold</b>")

    @app.get("/{name}")
    def read(name: str, more: int | None = Query(None, description="a < b & `c`")) -> None:
        """Gives `<name>`."""

    text = api_page(app.openapi())
    assert "<b>" not in text
    assert "<p>Gives <code>&lt;name&gt;</code>.</p>" in text
    assert "a &lt; b &amp; <code>c</code> <code>integer</code> (may be left out)" in text
    assert "path: name" in text
