"""The routes of the Open Inference Protocol that ask the model: tensors in, tensors out."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import anyio
import numpy as np
from anyio.to_thread import run_sync
from fastapi import FastAPI, Request, Response

from d2ed2q.data.dicom import LONGEST_SIDE, MOST_PIXELS
from d2ed2q.serve import oip
from d2ed2q.serve.door import HttpDoor, place, read_body
from d2ed2q.serve.openapi import TENSORS, announced

__all__ = ["add_inference"]

_PROTOCOL = "Open Inference Protocol"
_SLOTS = 16
_AT_ONCE = 2  # one that computes, and one that is read or written


def add_inference(app: FastAPI, door: HttpDoor, known: Any, check: Callable[[str, str | None], None]) -> None:
    """Adds the routes.

    Args:
        app: the application.
        door: what they lead to.
        known: finds out who asks.
        check: refuses models that there are not.
    """
    manifest, sha256 = door.model.manifest, door.model.bundle.sha256

    slots = anyio.Semaphore(_SLOTS)
    limiter = anyio.CapacityLimiter(_AT_ONCE)  # threads that other routes need are not taken

    def infer(body: bytes, header: str | None, owner: str) -> Response:
        request = oip.parse_infer(body, header, manifest.input, MOST_PIXELS, LONGEST_SIDE)
        oip.check_listed(request, manifest)
        outputs = oip.stacked([_outputs(door, image, request.tta) for image in request.images])
        doubts = [round(float(doubt), 4) for doubt in outputs["doubt"]]
        refused = int(outputs["refused"].sum())
        door.audit.write("inferred", door="http", client=owner, model=sha256, doubt=doubts, refused=refused)
        answer, length = oip.infer_response(manifest, sha256, request, outputs)
        if length is None:
            return Response(answer, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)

    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):

        @app.post(f"{prefix}/infer", **announced(_PROTOCOL, 400, 404, 408, 503, 507, body=TENSORS))
        async def inference(model: str, request: Request, owner: known, version: str | None = None) -> Response:
            """Tensors in, tensors out."""
            check(model, version)
            with place(slots, door.metrics):
                body = await read_body(request, door.settings.largest_mb)
                header = request.headers.get("inference-header-content-length")
                return await run_sync(infer, body, header, owner, limiter=limiter)


def _outputs(door: HttpDoor, image: np.ndarray, tta: str) -> Mapping[str, np.ndarray]:
    """All outputs for one image, float32 ``C×H×W`` in [0, 1]."""
    start = time.perf_counter()
    prediction = door.model.scaled(image, tta)
    refused = door.model.refuses(prediction)
    door.metrics.jobs.labels("http", "refused" if refused else "done").inc()
    door.metrics.seconds.observe(time.perf_counter() - start)
    door.metrics.doubt.observe(prediction.doubt)
    return {
        "probability": prediction.probability,
        "learners": prediction.learners,
        "mask": prediction.mask.astype(np.uint8),
        "doubt": np.float32(prediction.doubt),
        "refused": np.bool_(refused),
    }
