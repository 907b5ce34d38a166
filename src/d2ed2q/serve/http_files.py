"""The routes for files: an image in, results out."""

import asyncio
import contextlib
import hashlib
from typing import Annotated, Any

import anyio
from anyio.to_thread import run_sync
from fastapi import FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import JSONResponse

from d2ed2q.data.dicom import is_dicom
from d2ed2q.errors import DataError
from d2ed2q.serve.door import HttpDoor, place, read_body
from d2ed2q.serve.openapi import IMAGE, announced
from d2ed2q.serve.results import MEDIA_TYPES, result_names
from d2ed2q.serve.store import Job, QueueFullError
from d2ed2q.serve.worker import Worker

__all__ = ["add_files"]

_WAIT = 300.0  # seconds that a sender waits for its result at most
_SLOTS = 32
_ACCEPTED = {
    "application/json": "summary.json",
    "image/png": "mask.png",
    "application/dicom": "segmentation.dcm",
    "*/*": "summary.json",
    "application/*": "summary.json",
    "image/*": "mask.png",
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


def add_files(app: FastAPI, door: HttpDoor, known: Any) -> None:
    """Adds the routes.

    Args:
        app: the application.
        door: what they lead to.
        known: finds out who asks.
    """
    manifest, sha256 = door.model.manifest, door.model.bundle.sha256
    learners = manifest.output.learners
    slots = anyio.Semaphore(_SLOTS)

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

    def answer(number: int, name: str, owner: str, asked: bool, sent: bool = False) -> Response:
        """A result of a job; one that is refused is given out only if it was asked for by its name.

        Args:
            number: of the job.
            name: of the result.
            owner: who asks.
            asked: whether it was asked for by its name.
            sent: whether the image came with this very request, which begins the job anew when it comes again.
        """
        job = found(number)
        if job.state == "failed" and job.again:
            said = f"{job.error or 'the engine has failed'}; it is not the image's fault: send it again later"
            raise HTTPException(503, said, {"Retry-After": "5"} if sent else None)
        if job.state == "failed":
            raise HTTPException(422, job.error or "the image could not be segmented")
        if not job.finished:
            return JSONResponse({"job": job.id, "state": job.state}, 202, {"Location": f"/jobs/{job.id}"})
        summary, refused = job.summary or {}, job.state == "refused"
        headers = {
            "X-Job": str(job.id),
            "X-Refused": "true" if refused else "false",
            "X-Model-SHA256": str(summary.get("model_sha256", "")),
        }
        if name == "summary.json":
            body = {"job": job.id, "state": job.state, **summary}
            body["results"] = [f"/jobs/{job.id}/{file}" for file in result_names(learners, is_of_dicom(job.id))]
            return JSONResponse(body, headers=headers)
        if refused and not asked:
            bound = f"the doubt of this image is {summary.get('doubt')}, and it is refused; look at it yourself"
            raise HTTPException(422, f"{bound}, or name the result: ?result={name}", headers)
        try:
            data = door.render(job.id, name)
        except KeyError as error:
            found(number)
            raise HTTPException(404, f"there is no result {name} of an image that is no DICOM file") from error
        door.audit.note("read", job=job.id, door="http", client=owner, result=name)
        return Response(data, media_type=MEDIA_TYPES[name[name.rindex(".") :]], headers=headers)

    def is_of_dicom(job: int) -> bool:
        try:
            with open(door.store.input_of(job), "rb") as file:
                return is_dicom(file.read(132))
        except FileNotFoundError as error:
            raise HTTPException(404, f"there is no job {job}") from error

    def found(number: int) -> Job:
        try:
            return door.store.get(number)
        except KeyError as error:
            raise HTTPException(404, f"there is no job {number}") from error

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
            door.audit.note("received", job=job.id, door="http", client=owner, key=key)
            door.worker.wake()
        else:
            door.denials.repeat(job, key, owner)
        return job

    @app.post("/segment", **announced("Files", 202, 400, 404, 406, 408, 410, 422, 503, 507, body=IMAGE))
    async def segment(
        request: Request,
        owner: known,
        result: Annotated[str | None, Query(description="name of the result, in place of Accept")] = None,
        tta: Annotated[str | None, Query(pattern="^(none|flips|dihedral)$")] = None,
    ) -> Response:
        """An image in (PNG, JPEG, TIFF, BMP or DICOM, as the body), a result out.

        `Accept: application/json` gives a summary with the addresses of all results, `image/png` the mask,
        `application/dicom` a DICOM segmentation. Of an image that is refused, the last two are 422; `result` gives them
        nevertheless. Where the engine failed, and not the image, it is 503: `Retry-After` says when to send it again.
        """
        name = wanted(request, result)
        with place(slots, door.metrics):
            data = await read_body(request, door.settings.largest_mb)
            job = await run_sync(accept, data, tta, owner)
        await _ended(door.worker, job)
        return await run_sync(answer, job.id, name, owner, result is not None, True)

    number = Annotated[int, Path(ge=1, le=2**53)]

    @app.get("/jobs/{job}", **announced("Files", 202, 404, 422, 503, 507))
    async def status(job: number, owner: known) -> Response:
        """How a job stands, and what came out."""
        return await run_sync(answer, job, "summary.json", owner, True)

    @app.get("/jobs/{job}/{result}", **announced("Files", 202, 400, 404, 406, 410, 422, 503, 507))
    async def file(job: number, result: str, request: Request, owner: known) -> Response:
        """One result of a job."""
        name = wanted(request, result)
        return await run_sync(answer, job, name, owner, True)
