"""The HTTP door: the Open Inference Protocol, single files, the web page, counters."""

import asyncio
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import anyio
import numpy as np
from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.base import BaseHTTPMiddleware

from d2ed2q.data.dicom import MOST_PIXELS, is_dicom
from d2ed2q.deploy.prediction import make_prediction
from d2ed2q.errors import D2ED2QError, DataError, StorageError
from d2ed2q.serve import oip
from d2ed2q.serve.access import RateLimit, Tokens
from d2ed2q.serve.audit import AuditLog
from d2ed2q.serve.metrics import NodeMetrics
from d2ed2q.serve.model import RESEARCH, Model
from d2ed2q.serve.openapi import EVERYWHERE, IMAGE, TENSORS, announced
from d2ed2q.serve.page import add_page
from d2ed2q.serve.results import MEDIA_TYPES, result_names
from d2ed2q.serve.settings import HttpSettings
from d2ed2q.serve.store import Job, JobStore, QueueFullError
from d2ed2q.serve.worker import Worker

__all__ = ["HttpDoor", "make_app"]

_WAIT = 300.0  # seconds that a sender waits for its result at most
_DESCRIPTION = f"Segments images. {RESEARCH.capitalize()}."
_PROTOCOL = "Open Inference Protocol"
_ACCEPTED = {
    "application/json": "summary.json",
    "image/png": "mask.png",
    "application/dicom": "segmentation.dcm",
    "*/*": "summary.json",
    "application/*": "summary.json",
    "image/*": "mask.png",
}


@dataclass(frozen=True)
class HttpDoor:
    """What the door leads to."""

    settings: HttpSettings
    model: Model
    store: JobStore
    worker: Worker
    audit: AuditLog
    metrics: NodeMetrics
    node: str
    render: Callable[[int, str], bytes]


def make_app(door: HttpDoor) -> FastAPI:
    """The application; run it with any ASGI server."""
    app = FastAPI(
        title=f"d2ed2q node {door.node}", description=_DESCRIPTION, version=door.model.bundle.sha256[:16],
        docs_url=None, redoc_url=None, responses=EVERYWHERE,
    )  # fmt: skip
    app.state.slots = anyio.Semaphore(door.worker.store.limit)
    tokens, limit = Tokens(door.settings.tokens), RateLimit(door.settings.per_minute)

    async def client(request: Request) -> str:
        """Who asks; nobody unknown, and nobody too often."""
        host = request.client.host if request.client is not None else "unknown"
        owner = tokens.owner(request.headers.get("authorization"))
        if owner is None:
            door.metrics.denied.labels("http", "token").inc()
            if limit.allow(f"denied {host}") == 0:  # guessing must not fill the disk
                door.audit.write("denied", door="http", client=host, reason="token")
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        wait = limit.allow(owner if owner != "anybody" else host)
        if wait:
            door.metrics.denied.labels("http", "rate").inc()
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        return owner

    known = Annotated[str, Depends(client)]
    app.add_middleware(BaseHTTPMiddleware, dispatch=partial(_guard, door))
    app.add_exception_handler(D2ED2QError, _refuse)
    app.add_exception_handler(StarletteHTTPException, _say)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    _add_health(app, door)
    _add_inference(app, door, known)
    _add_files(app, door, known)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(_: known) -> Response:
        return Response(await run_sync(door.metrics.text), media_type="text/plain; version=0.0.4")

    if door.settings.page:
        add_page(app, door.model, door.node)
    return app


async def _guard(door: HttpDoor, request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
    """Counts requests, bounds their size before they are read, and keeps pages from being embedded or sniffed."""
    length = request.headers.get("content-length", "0")
    most = door.settings.largest_mb * 1_000_000
    if not length.isdigit() or int(length) > most:
        response: Response = _problem(413, f"a request may have {most:,} bytes")
    else:
        response = await call(request)
    route = getattr(request.scope.get("route"), "path", "other")
    door.metrics.requests.labels(route, str(response.status_code)).inc()
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["X-Research-Use-Only"] = RESEARCH
    response.headers["Content-Security-Policy"] = (
        "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'"
    )
    response.headers["Cache-Control"] = "no-store"
    return response


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _refuse(_: Request, error: Exception) -> Response:
    return _problem(507 if isinstance(error, StorageError) else 400, str(error))


async def _say(_: Request, error: Exception) -> Response:
    """As the Open Inference Protocol has errors."""
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _say_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


async def _body(request: Request, most: int) -> bytes:
    """The whole body, as long as it is no longer than it may be, whatever its header said."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise HTTPException(413, f"a request may have {most:,} bytes")
        parts.append(part)
    return b"".join(parts)


def _add_health(app: FastAPI, door: HttpDoor) -> None:
    """The routes that need no token: whether the node lives, and what it offers."""
    name, version = door.model.manifest.name, door.model.bundle.sha256[:16]

    def ready() -> bool:
        return door.model.sound and door.worker.alive

    def check(model: str, asked: str | None = None) -> None:
        if model != name or asked not in (None, version):
            raise HTTPException(404, f"there is no such model; there is {name}, version {version}")

    @app.get("/v2", **announced(_PROTOCOL))
    async def server() -> dict[str, Any]:
        """What the server is."""
        return {"name": "d2ed2q", "version": app.version, "extensions": list(oip.EXTENSIONS)}

    @app.get("/v2/health/live", **announced(_PROTOCOL))
    async def live() -> dict[str, bool]:
        """Whether the server answers."""
        return {"live": True}

    @app.get("/v2/health/ready", **announced(_PROTOCOL, 503))
    async def is_ready() -> Response:
        """Whether images can be sent."""
        return JSONResponse({"ready": ready()}, 200 if ready() else 503)

    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):

        @app.get(prefix, **announced(_PROTOCOL, 404))
        async def metadata(model: str, version: str | None = None) -> dict[str, Any]:
            """What the model takes and gives."""
            check(model, version)
            return oip.model_metadata(door.model.manifest, door.model.bundle.sha256)

        @app.get(f"{prefix}/ready", **announced(_PROTOCOL, 404, 503))
        async def model_ready(model: str, version: str | None = None) -> Response:
            """Whether the model can be asked."""
            check(model, version)
            return JSONResponse({"name": model, "ready": ready()}, 200 if ready() else 503)

    app.state.check_model = check


def _add_inference(app: FastAPI, door: HttpDoor, known: Any) -> None:
    manifest, sha256 = door.model.manifest, door.model.bundle.sha256

    def infer(body: bytes, header: str | None) -> Response:
        request = oip.parse_infer(body, header, manifest.input.channels, MOST_PIXELS)
        found = [_outputs(door.model, image, request.tta) for image in request.images]
        answer, length = oip.infer_response(manifest, sha256, request, oip.stacked(found))
        if length is None:
            return Response(answer, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(length)}
        return Response(answer, media_type="application/octet-stream", headers=headers)

    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):

        @app.post(f"{prefix}/infer", **announced(_PROTOCOL, 400, 404, body=TENSORS))
        async def inference(model: str, request: Request, owner: known, version: str | None = None) -> Response:
            """Tensors in, tensors out."""
            app.state.check_model(model, version)
            body = await _body(request, door.settings.largest_mb * 1_000_000)
            slots: anyio.Semaphore = app.state.slots
            try:
                slots.acquire_nowait()
            except anyio.WouldBlock as error:
                door.metrics.denied.labels("http", "full").inc()
                raise HTTPException(429, "the queue is full", {"Retry-After": "1"}) from error
            try:
                return await run_sync(infer, body, request.headers.get("inference-header-content-length"))
            finally:
                slots.release()


def _outputs(model: Model, image: np.ndarray, tta: str) -> Mapping[str, np.ndarray]:
    """All outputs for one image, float32 ``C×H×W`` in [0, 1]."""
    output = model.manifest.output
    learners = model.scaled(image, tta)
    prediction = make_prediction(
        learners, output.prediction, output.thresholds[output.prediction], None, output.temperature, output.objects
    )
    return {
        "probability": prediction.probability,
        "learners": learners,
        "mask": prediction.mask.astype(np.uint8),
        "doubt": np.float32(prediction.doubt),
    }


async def _ended(worker: Worker, job: Job) -> None:
    """Waits until a job has ended, but not for ever; no thread waits meanwhile."""
    loop, event = asyncio.get_running_loop(), asyncio.Event()

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(event.set)

    await run_sync(worker.when_ended, job.id, tell)
    with anyio.move_on_after(_WAIT):
        await event.wait()


def _add_files(app: FastAPI, door: HttpDoor, known: Any) -> None:
    manifest, sha256 = door.model.manifest, door.model.bundle.sha256
    learners = manifest.output.learners

    def wanted(request: Request, result: str | None) -> str:
        if result is not None:
            if result not in result_names(learners, dicom=True):
                raise HTTPException(
                    404, f"there is no result {result}; there are {', '.join(result_names(learners, True))}"
                )
            return result
        for offered in request.headers.get("accept", "*/*").split(","):
            name = _ACCEPTED.get(offered.partition(";")[0].strip().lower())
            if name is not None:
                return name
        raise HTTPException(406, f"what can be accepted is {', '.join(sorted(set(MEDIA_TYPES.values())))}")

    def answer(job: Job, name: str) -> Response:
        if job.state == "failed":
            raise HTTPException(422, job.error or "the image could not be segmented")
        if not job.finished:
            return JSONResponse({"job": job.id, "state": job.state}, 202, {"Location": f"/jobs/{job.id}"})
        if name == "summary.json":
            body = {"job": job.id, "state": job.state, **(job.summary or {})}
            with open(door.store.input_of(job.id), "rb") as file:
                dicom = is_dicom(file.read(132))
            body["results"] = [f"/jobs/{job.id}/{file}" for file in result_names(learners, dicom)]
            return JSONResponse(body)
        try:
            data = door.render(job.id, name)
        except KeyError as error:
            raise HTTPException(404, f"there is no result {name} of an image that is no DICOM file") from error
        return Response(data, media_type=MEDIA_TYPES[name[name.rindex(".") :]], headers={"X-Job": str(job.id)})

    def accept(data: bytes, tta: str | None, owner: str) -> Job:
        if not data:
            raise DataError("there is no image in the request")
        key = hashlib.sha256(f"{sha256} {tta} ".encode() + data).hexdigest()
        try:
            job, new = door.store.add(key, "http", data, {} if tta is None else {"tta": tta})
        except QueueFullError as error:
            door.metrics.denied.labels("http", "full").inc()
            raise HTTPException(429, "the queue is full", {"Retry-After": "5"}) from error
        if new:
            door.audit.write("received", job=job.id, door="http", client=owner, key=key)
            door.worker.wake()
        return job

    @app.post("/segment", **announced("Files", 202, 400, 404, 406, 422, 507, body=IMAGE))
    async def segment(
        request: Request,
        owner: known,
        result: Annotated[str | None, Query(description="name of the result, in place of Accept")] = None,
        tta: Annotated[str | None, Query(pattern="^(none|flips|dihedral)$")] = None,
    ) -> Response:
        """An image in (PNG, JPEG, TIFF, BMP or DICOM, as the body), a result out.

        `Accept: application/json` gives a summary with the addresses of all results, `image/png` the mask,
        `application/dicom` a DICOM segmentation.
        """
        name = wanted(request, result)
        data = await _body(request, door.settings.largest_mb * 1_000_000)
        job = await run_sync(accept, data, tta, owner)
        await _ended(door.worker, job)
        return await run_sync(lambda: answer(door.store.get(job.id), name))

    def found(number: int) -> Job:
        try:
            return door.store.get(number)
        except KeyError as error:
            raise HTTPException(404, f"there is no job {number}") from error

    number = Annotated[int, Path(ge=1, le=2**53)]

    @app.get("/jobs/{job}", **announced("Files", 202, 404, 422))
    async def status(job: number, owner: known) -> Response:
        """How a job stands, and what came out."""
        return await run_sync(lambda: answer(found(job), "summary.json"))

    @app.get("/jobs/{job}/{result}", **announced("Files", 202, 400, 404, 406, 422))
    async def file(job: number, result: str, request: Request, owner: known) -> Response:
        """One result of a job."""
        name = wanted(request, result)
        return await run_sync(lambda: answer(found(job), name))
