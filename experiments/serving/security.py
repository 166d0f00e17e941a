"""What stands before every route: who may ask, from where, and how much at a time.

A page of another origin can make a browser send requests here: what changes something must come from our own
page or from no page, and on loopback the address must be a name of loopback, which a name of another origin
that resolves to it is not.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from experiments.serving.errors import ApiError

COOKIE = "o3jax_session"
_OPEN = {"/", "/app.js", "/style.css", "/healthz", "/session", "/favicon.ico"}  # without a key
_SAFE = {"GET", "HEAD", "OPTIONS"}
_BODY_S = 30.0  # for the next piece of a body
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
    " media-src 'self' blob:; connect-src 'self'; frame-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'"
)
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
    b"content-security-policy": _PAGE.encode(),
}


def is_loopback(host: str) -> bool:
    """Returns whether a host is this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application around another, which it protects.

    Args:
        key: that requests must show; None: none.
        loopback: requests must name a host that is this machine.
        most_bytes: of a body, by the path that it is sent to; "" is every other path.
    """

    def __init__(self, app: Callable, *, key: str | None, loopback: bool, most_bytes: dict[str, int]):
        self.app, self.loopback, self.most_bytes = app, loopback, most_bytes
        self._key = _digest(key) if key else None
        self._sessions: set[bytes] = set()

    def open_session(self, key: str) -> str:
        """Returns the cookie of a browser that knows the key; ApiError if it does not."""
        if self._key is not None and not hmac.compare_digest(_digest(key), self._key):
            raise ApiError(401, "this is not the server's key", "invalid_api_key")
        session = secrets.token_urlsafe(32)
        self._sessions.add(_digest(session))
        return session

    async def __call__(
        self, scope: dict[str, Any], receive: Callable, send: Callable[..., Awaitable]
    ) -> None:
        if scope["type"] != "http":  # lifespan; there are no web sockets
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]
        }

        async def send_guarded(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                more = [(name, value) for name, value in _HEADERS.items() if name not in there]
                message = message | {"headers": [*message["headers"], *more]}
            await send(message)

        try:
            self._check(scope, headers)
        except ApiError as error:
            await error.response()(scope, receive, send_guarded)
            return
        most = self.most_bytes.get(scope["path"], self.most_bytes[""])
        await self.app(scope, _bounded(receive, most), send_guarded)

    def _check(self, scope: dict[str, Any], headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self.loopback and not is_loopback(_without_port(host)):
            raise ApiError(403, f"the host {host[:100]!r} is not this machine", "wrong_host")
        if scope["method"] not in _SAFE:
            origin = headers.get("origin")
            if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
                raise ApiError(403, "requests from pages of another origin are refused", "wrong_origin")
            if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
                raise ApiError(403, "requests from pages of another site are refused", "wrong_origin")
        if self._key is not None and scope["path"] not in _OPEN and not self._knows(headers):
            raise ApiError(
                *(
                    401,
                    "the server's key is missing or wrong: send Authorization: Bearer KEY",
                    "invalid_api_key",
                ),
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "0")
        most = self.most_bytes.get(scope["path"], self.most_bytes[""])
        if not re.fullmatch(r"\d{1,18}", length) or int(length) > most:
            raise _too_large(most)

    def _knows(self, headers: dict[str, str]) -> bool:
        kind, _, key = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return hmac.compare_digest(_digest(key.strip()), self._key)
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _digest(cookie.value) in self._sessions


def _bounded(receive: Callable[[], Awaitable[dict]], most: int) -> Callable[[], Awaitable[dict]]:
    """Returns `receive` for a body of at most so many bytes, which may not pause for long."""
    left, whole = most, False

    async def bounded() -> dict[str, Any]:
        nonlocal left, whole
        if whole:  # what comes now is the client's leaving, if it leaves
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), _BODY_S)
        except TimeoutError:
            raise HTTPException(408, f"nothing of the body came for {_BODY_S:g} s") from None
        left -= len(message.get("body", b""))
        whole = not message.get("more_body", False)
        if left < 0:
            raise HTTPException(413, _too_large(most).message)
        return message

    return bounded


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than the {most} bytes that are allowed", "too_large")


def _without_port(host: str) -> str:
    """Returns the name or address of a Host header."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
