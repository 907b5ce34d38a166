"""The web page of a node: files of the package, and nothing from anywhere else."""

from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Response

from d2ed2q.deploy.bundle import CARD
from d2ed2q.ensemble import learner_names
from d2ed2q.serve.api_page import api_page
from d2ed2q.serve.model import RESEARCH, Model

__all__ = ["add_page"]

_FILES = {
    "index.html": "text/html; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "png.js": "text/javascript; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


def add_page(app: FastAPI, model: Model, node: str) -> None:
    """Adds ``/``, its script and style, ``/card`` with what the page says of the model, and ``/docs``."""
    folder = files("d2ed2q.serve") / "static"
    content = {name: (folder / name).read_bytes() for name in _FILES}
    manifest = model.manifest

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(content["index.html"], media_type=_FILES["index.html"])

    @app.get("/static/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        if name not in content:
            return Response(status_code=404)
        return Response(content[name], media_type=_FILES[name])

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(api_page(app.openapi()), media_type=_FILES["index.html"])

    @app.get("/card", tags=["Files"])
    async def card() -> dict[str, Any]:
        """What the model is, for people."""
        accuracy = manifest.accuracy
        return {
            "node": node,
            "name": manifest.name,
            "sha256": model.bundle.sha256,
            "classes": list(manifest.output.classes),
            "learners": list(learner_names(manifest.output.learners)),
            "threshold": manifest.output.thresholds[manifest.output.prediction],
            "refuse": model.refuse,
            "trained_on": manifest.provenance.get("dataset", ""),
            "dice": accuracy.dice[1],
            "validation_images": accuracy.images,
            "card": model.bundle.parts[CARD].decode(),
            "note": RESEARCH,
        }
