"""The process that listens: slow clients have little time, and it ends when it has replied to all."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from experiments.serving.engine import Engine
from o3jax.errors import UserError
from o3jax.printing import shortened

_HEADERS_S = 5.0  # for a request's line and headers, also of the next request on a connection
_CONNECTIONS = 512
_LINGER_S = 0.5  # after the last reply, for those who are about to connect: they are told, not cut off


class _Protocol(H11Protocol):
    """Closes connections whose headers do not come in time."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE and self._late is not None:
            self._late.cancel()
            self._late = None
        elif self.conn.their_state is h11.IDLE and self._late is None:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._late = self.loop.call_later(_HEADERS_S, self.transport.close)


class Server(uvicorn.Server):
    """Ends after SIGTERM or SIGINT when the engine has replied to all, after `seconds` at the latest.

    Until then it refuses new requests with 503; a second signal ends it at once.
    """

    def __init__(self, app: Callable, engine: Engine, seconds: float):
        config = uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=_CONNECTIONS,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)
        self.engine, self.seconds = engine, seconds

    def handle_exit(self, sig: int, frame: Any) -> None:
        """Begins to end."""
        if self.engine.leaving or sig == signal.SIGQUIT:
            self.should_exit = self.force_exit = True
            return
        self.engine.leaving = True

    async def on_tick(self, counter: int) -> bool:
        """Ends once all is replied to; uvicorn calls it ten times a second."""
        if self.engine.leaving and not self.should_exit:
            self._left = getattr(self, "_left", 0.0) + 0.1
            idle = not self.engine.busy
            self._idle = getattr(self, "_idle", 0.0) + 0.1 if idle else 0.0
            if self._idle >= _LINGER_S or self._left >= self.seconds:
                self.should_exit = True
        return await super().on_tick(counter)


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens; UserError if the port is taken or the host is not this machine's."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address, family=family, backlog=_CONNECTIONS)
    except (OSError, OverflowError) as error:
        why = shortened(getattr(error, "strerror", None) or str(error), 100)
        raise UserError(
            f"port {port} of {host} cannot be listened at ({why}): choose another --port"
        ) from None
