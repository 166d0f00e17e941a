"""The routes of a server."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.exceptions import HTTPException

from experiments.serving.answers import Answers
from experiments.serving.chat import Chat
from experiments.serving.engine import Engine
from experiments.serving.errors import ApiError, as_api_error
from experiments.serving.files import Files
from experiments.serving.metrics import Metrics
from experiments.serving.schema import ChatRequest, Session
from experiments.serving.security import COOKIE, Guard
from o3jax.errors import UserError

CHAT, FILES = "/v1/chat/completions", "/v1/files"
_PAGE = Path(__file__).parent / "page"
# The page's own policy, which a nonce makes strict, counts beside it.
_REPORT_CSP = (
    "default-src 'none'; img-src data:; media-src data: blob:; style-src 'unsafe-inline';"
    " script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)


def make_app(engine: Engine, files: Files, answers: Answers, *, max_tokens: int) -> FastAPI:
    """Returns the application, without its guard (see `guarded`)."""
    app = FastAPI(title="o3jax", docs_url=None, redoc_url=None)
    metrics = Metrics(engine)
    chat = Chat(engine, files, answers, metrics, max_tokens)
    _add_errors(app)

    @app.get("/healthz")
    async def healthz() -> Response:
        status = "leaving" if engine.leaving else "ok"
        values = {"status": status, "waiting": engine.waiting, "running": engine.running}
        return JSONResponse(values, 503 if engine.leaving else 200)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(chat.name)]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        if name != chat.name:
            raise ApiError(404, f"the model {name!r} is not served", "model_not_found")
        return _model(name)

    @app.post(CHAT)
    async def completions(body: ChatRequest, request: Request) -> Response:
        return await chat(body, request)

    @app.post(FILES)
    async def upload(file: UploadFile, purpose: Annotated[str, Form(max_length=100)] = "user_data") -> Any:
        if engine.leaving:
            raise ApiError(503, "the server is about to end: try again later", "shutting_down")
        return (await asyncio.to_thread(files.add, file.file, file.filename or "video", purpose)).to_json()

    @app.get(FILES)
    async def all_files() -> dict[str, Any]:
        found = [file.to_json() for file in files.all()]
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        return {"object": "list", "data": found, "has_more": False, **ends}

    @app.get(FILES + "/{name}")
    async def one_file(name: str) -> dict[str, Any]:
        return files.get(name)[0].to_json()

    @app.get(FILES + "/{name}/content")
    async def content(name: str) -> Response:
        _, path = files.get(name)
        download = {"Content-Disposition": "attachment"}
        return FileResponse(path, media_type="application/octet-stream", headers=download)

    @app.delete(FILES + "/{name}")
    async def remove(name: str) -> dict[str, Any]:
        files.remove(name)
        return {"id": name, "object": "file", "deleted": True}

    @app.get("/v1/answers/{name}/report")
    async def report(name: str) -> Response:
        path = await asyncio.to_thread(answers.report, name)
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": _REPORT_CSP})

    @app.post("/v1/answers/{name}/review")
    async def review(name: str, body: dict[str, Any]) -> dict[str, Any]:
        return await asyncio.to_thread(answers.review, name, body)

    for route, name, kind in (
        ("/", "index.html", "text/html"),
        ("/app.js", "app.js", "text/javascript"),
        ("/style.css", "style.css", "text/css"),
    ):
        _add_page(app, route, _PAGE / name, kind)
    return app


def guarded(app: FastAPI, *, key: str | None, loopback: bool, max_upload: int, max_chat: int) -> Guard:
    """Returns the application behind its guard, whose browsers may sign in."""
    slack = 2**16  # of a form around a file
    guard = Guard(
        app, key=key, loopback=loopback, most_bytes={FILES: max_upload + slack, CHAT: max_chat, "": 2**20}
    )

    @app.post("/session", include_in_schema=False)
    async def session(body: Session) -> Response:
        response = JSONResponse({"object": "session"})
        cookie = guard.open_session(body.key)
        response.set_cookie(COOKIE, cookie, httponly=True, samesite="strict", path="/")
        return response

    return guard


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "o3jax"}


def _add_page(app: FastAPI, route: str, path: Path, kind: str) -> None:
    @app.get(route, include_in_schema=False)
    async def page() -> Response:
        return FileResponse(path, media_type=kind)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = max(error.errors(), key=lambda one: len(one["loc"]))  # of a choice of types the nearest one
        param = ".".join(map(str, first["loc"][1:])) or None
        status = 400 if first["type"] == "json_invalid" else 422
        return ApiError(status, f"{param or 'body'}: {first['msg']}", first["type"], param).response()

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> Response:
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    @app.exception_handler(ApiError)
    async def api(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(UserError)
    async def user(_: Request, error: UserError) -> Response:
        return as_api_error(error).response()

    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
