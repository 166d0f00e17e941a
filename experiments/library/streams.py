"""Cameras on the network, copied as they send into a file that grows."""

from __future__ import annotations

import contextlib
import re
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path

import av

from o3jax.child import Child
from o3jax.errors import UserError

_START_S = 30.0  # until the first picture has come


@contextlib.contextmanager
def recorded(urls: Sequence[str], hosts: Sequence[str], folder: Path) -> Iterator[list[str]]:
    """Yields the files into which streams are copied by processes that end with the block.

    Args:
        hosts: from which streams may come.

    Raises:
        UserError: if an address is none of an allowed host, or nothing comes from it.
    """
    for url in urls:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("rtsp", "rtsps"):
            raise UserError(f"{url:.100} is no rtsp:// address: name a file, a folder, or a camera's address")
        if parts.hostname not in hosts:
            raise UserError(f"{url:.100} is not fetched: allow its host with --allow_url={parts.hostname}")
    children, files = [], []
    try:
        for url in urls:
            name = re.sub(r"\W+", "_", urllib.parse.urlsplit(url).hostname or "")
            path = folder / "streams" / name / f"{datetime.now():%Y%m%d-%H%M%S}-{len(files)}.ts"
            path.parent.mkdir(parents=True, exist_ok=True)
            child = Child("experiments.library.streams:record", (url, str(path)))
            child.send(b"start")
            children.append(child)
            files.append(str(path))
        for url, path, child in zip(urls, files, children, strict=True):
            limit = time.monotonic() + _START_S
            while not Path(path).exists() or Path(path).stat().st_size == 0:
                if child.ended() or time.monotonic() > limit:
                    raise UserError(f"nothing comes from {url:.100}: check the address and the camera")
                time.sleep(0.1)
        yield files
    finally:
        for child in children:
            child.end()


def record(pipe: Connection, asked: tuple[str, str]) -> None:
    """Copies a stream's pictures into an MPEG transport stream, which is readable while it grows."""
    pipe.send("ready")
    pipe.recv_bytes()
    url, path = asked
    options = {"rtsp_transport": "tcp", "protocol_whitelist": "rtsp,rtsps,rtp,tcp,udp,tls"}
    with (
        av.open(url, options=options, timeout=_START_S) as source,
        av.open(path, "w", format="mpegts", options={"flush_packets": "1"}) as target,
    ):
        track = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
