"""The OpenAPI document as a page for people, made on the node: no script, and nothing from anywhere else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from d2ed2q.serve.model import RESEARCH

__all__ = ["api_page"]

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}: interface</title>
<link rel="icon" href="/static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="/static/page.css">
</head>
<body>
<header><h1>{title}</h1><p class="note">{note}</p></header>
<main>
<p>Model version <code>{version}</code>. For programs: <a href="/openapi.json">openapi.json</a> (OpenAPI {openapi}).</p>
{operations}
</main>
</body>
</html>
"""


def api_page(document: Mapping[str, Any]) -> str:
    """Every operation with its parameters, bodies and answers.

    Args:
        document: OpenAPI 3.

    Returns:
        str: HTML.
    """
    by_tag: dict[str, list[str]] = {}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            tag = operation.get("tags", ["Other"])[0]
            by_tag.setdefault(tag, []).append("\n".join(_operation(method.upper(), path, operation)))
    sections = (f"<h2>{escape(tag)}</h2>\n" + "\n".join(found) for tag, found in by_tag.items())
    return _PAGE.format(
        title=escape(document["info"]["title"]),
        version=escape(document["info"]["version"]),
        openapi=escape(document["openapi"]),
        note=escape(RESEARCH.capitalize()),
        operations="\n".join(sections),
    )


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<section><h3><code>{method} {escape(path)}</code></h3>"
    for paragraph in operation.get("description", operation.get("summary", "")).split("\n\n"):
        yield f"<p>{_text(paragraph)}</p>"
    yield "<table><tbody>"
    for parameter in operation.get("parameters", ()):
        schema, needed = parameter.get("schema", {}), "required" if parameter.get("required") else "may be left out"
        kinds = [kind for kind in (schema, *schema.get("anyOf", ())) if "type" in kind]
        allowed = "; ".join(kind.get("pattern", kind["type"]) for kind in kinds if kind["type"] != "null")
        said = " ".join(filter(None, (_text(parameter.get("description", "")), f"<code>{escape(allowed)}</code>")))
        yield _row(f"{parameter['in']}: {parameter['name']}", f"{said} ({needed})")
    if "requestBody" in operation:
        yield _row("body", ", ".join(f"<code>{escape(kind)}</code>" for kind in operation["requestBody"]["content"]))
    answers = sorted(operation.get("responses", {}).items())
    told = (f"<code>{escape(status)}</code> {_text(answer.get('description', ''))}" for status, answer in answers)
    yield _row("answers", ", ".join(told))
    yield "</tbody></table></section>"


def _row(name: str, said: str) -> str:
    return f'<tr><th scope="row">{escape(name)}</th><td>{said}</td></tr>'


def _text(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(" ".join(text.split())))
