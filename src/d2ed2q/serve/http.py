"""The HTTP door: the Open Inference Protocol, single files, the web page, counters."""

import logging
from collections.abc import Callable
from typing import Annotated, Any

from anyio.to_thread import run_sync
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from d2ed2q.errors import BundleError, D2ED2QError, StorageError
from d2ed2q.serve import oip
from d2ed2q.serve.access import LOCAL, RateLimit, SameOrigin, Tokens
from d2ed2q.serve.door import HttpDoor
from d2ed2q.serve.http_files import add_files
from d2ed2q.serve.http_infer import add_inference
from d2ed2q.serve.model import RESEARCH
from d2ed2q.serve.openapi import EVERYWHERE, announced
from d2ed2q.serve.page import add_page
from d2ed2q.serve.results import OutdatedError
from d2ed2q.serve.worker import whereabouts

__all__ = ["make_app"]

_LOG = logging.getLogger("d2ed2q.serve")
_DESCRIPTION = f"Segments images. {RESEARCH.capitalize()}."
_PROTOCOL = "Open Inference Protocol"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Research-Use-Only": RESEARCH,
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}


def make_app(door: HttpDoor) -> FastAPI:
    """The application; run it with any ASGI server."""
    app = FastAPI(
        title=f"d2ed2q node {door.node}", description=_DESCRIPTION, version=door.model.bundle.sha256[:16],
        docs_url=None, redoc_url=None, responses=EVERYWHERE,
    )  # fmt: skip
    tokens, limit = Tokens(door.settings.tokens), RateLimit(door.settings.per_minute)

    async def client(request: Request) -> str:
        """Who asks; nobody unknown, and nobody too often."""
        host = _host_of(request)
        owner = tokens.owner(request.headers.get("authorization"))
        if owner is None:
            door.denials.deny("token", host)
            raise HTTPException(401, "a bearer token is needed", {"WWW-Authenticate": "Bearer"})
        wait = limit.allow(owner if owner != "anybody" else host)
        if wait:
            door.denials.deny("rate", host)
            raise HTTPException(429, "too many requests", {"Retry-After": str(int(wait) + 1)})
        return owner

    known = Annotated[str, Depends(client)]
    app.add_middleware(_Guard, door=door)
    app.add_exception_handler(D2ED2QError, _refuse)
    app.add_exception_handler(StarletteHTTPException, _say)
    app.add_exception_handler(RequestValidationError, _say_invalid)
    check = _add_health(app, door)
    add_inference(app, door, known, check)
    add_files(app, door, known)

    @app.get("/metrics", include_in_schema=False)
    async def metrics(_: known) -> Response:
        return Response(await run_sync(door.metrics.text), media_type="text/plain; version=0.0.4")

    if door.settings.page:
        add_page(app, door.model, door.node)
    return app


def _host_of(request: Request) -> str:
    """The address that a request comes from."""
    return request.client.host if request.client is not None else "unknown"


class _Guard:
    """Counts requests, bounds their size before they are read, and keeps pages from being embedded, sniffed or lent.

    Plain ASGI: what Starlette builds on for functions hands every piece of a body through two queues, which took as
    long as all the rest.
    """

    def __init__(self, app: ASGIApp, door: HttpDoor) -> None:
        self.app, self.door = app, door
        self.most = door.settings.largest_mb * 1_000_000
        http = door.settings
        self.pages = None if http.tokens else SameOrigin(http.host in LOCAL, http.names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request = Request(scope)
        status: int | None = None

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = int(message["status"])
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        length = request.headers.get("content-length", "0")
        instead: Response | None = None
        try:
            if self.pages is not None and (refused := self.pages.refuses(request.headers)) is not None:
                self.door.denials.deny("origin", _host_of(request))
                instead = _problem(*refused)
            elif length.isdigit() and int(length) <= self.most:
                await self.app(scope, receive, guarded)
            else:
                instead = _problem(413, f"a request may have {self.most:,} bytes")
        except ClientDisconnect:
            instead = _problem(400, "the request was cut off")
        except Exception as error:  # here, since a server would log the message, which may quote a patient's file
            _LOG.error("a request failed in a way that nobody thought of: %s", whereabouts(error))
            instead = _problem(500, "internal error")
        if instead is not None and status is None:
            await instead(scope, receive, guarded)
        if status == 413:
            self.door.denials.deny("size", _host_of(request))
        route = getattr(scope.get("route"), "path", "other")
        self.door.metrics.requests.labels(route, str(status)).inc()


def _problem(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


async def _refuse(_: Request, error: Exception) -> Response:
    if isinstance(error, BundleError):  # it is not the request's fault, and says where the model lies
        _LOG.error("the engine failed: %s", whereabouts(error))
        return JSONResponse({"error": "the engine has failed; come back later"}, 503, {"Retry-After": "5"})
    status = 507 if isinstance(error, StorageError) else 410 if isinstance(error, OutdatedError) else 400
    return _problem(status, str(error))


async def _say(_: Request, error: Exception) -> Response:
    """As the Open Inference Protocol has errors."""
    assert isinstance(error, StarletteHTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


async def _say_invalid(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _add_health(app: FastAPI, door: HttpDoor) -> Callable[[str, str | None], None]:
    """The routes that need no token: whether the node lives, and what it offers; gives what refuses other models."""
    name, version = door.model.manifest.name, door.model.bundle.sha256[:16]

    def ready() -> bool:
        return door.trouble() is None

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

    return check
