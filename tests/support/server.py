"""A live server of `o3jax serve` on loopback, with the embedded model."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import openai

from tests.support.paths import ROOT

MODEL = "o3-tiny"


class Live:
    """A running server."""

    def __init__(self, process: subprocess.Popen, url: str, folder: Path):
        self.process, self.url, self.folder = process, url, folder
        self.port = int(url.rsplit(":", 1)[1])
        self.http = httpx.Client(base_url=url, timeout=120)

    def openai(self, **options: Any) -> openai.OpenAI:
        """Returns the official client of it."""
        return openai.OpenAI(**{"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0} | options)

    def upload(self, path: Path) -> str:
        """Returns the id of an uploaded file."""
        with path.open("rb") as file:
            return self.openai().files.create(file=file, purpose="user_data").id

    def raw(self, request: bytes, seconds: float = 30) -> bytes:
        """Returns what comes back first for bytes on a new connection; nothing if that is reset."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=seconds) as connection:
            with contextlib.suppress(ConnectionError):
                connection.sendall(request)
                return connection.recv(1 << 16)
        return b""


def question(url: str, text: str) -> list[dict[str, Any]]:
    """Returns the messages that ask about a video."""
    video = {"type": "video_url", "video_url": {"url": url}}
    return [{"role": "user", "content": [video, {"type": "text", "text": text}]}]


@contextlib.contextmanager
def live(folder: Path, *flags: str, **environment: str) -> Iterator[Live]:
    """Yields a server that has the folder for its work, and ends with the block."""
    command = [sys.executable, "-m", "experiments.serve", "--port=0", f"--workdir={folder / 'work'}", *flags]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT, env=os.environ | environment
    )
    try:
        found = re.search(r"http://\S+:\d+", process.stdout.readline())
        assert found, (folder / "log").read_text()
        yield Live(process, found.group(), folder)
    finally:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=20)
        process.kill()
        process.wait()
        log.close()


def wait_for(condition: Any, seconds: float = 30) -> None:
    """Waits until a function returns something true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.05)


def events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """Yields the JSON of a stream's events."""
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line[6:])
