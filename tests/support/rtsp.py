"""A camera: an RTSP server on loopback that sends an MPEG transport stream to one client, over its link."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_TS, _AT_ONCE = 188, 7  # bytes of a packet of the stream, and how many an RTP packet holds


@contextlib.contextmanager
def camera(video: Path, seconds: float, speed: float) -> Iterator[str]:
    """Yields the address; the stream of `seconds` comes `speed` times as fast as it was filmed, then ends."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"rtsp://127.0.0.1:{server.getsockname()[1]}/gate"
        threading.Thread(
            target=_serve, args=(server, video.read_bytes(), seconds / speed), daemon=True
        ).start()
        yield url


def _serve(server: socket.socket, data: bytes, seconds: float) -> None:
    with contextlib.suppress(OSError), server.accept()[0] as link, link.makefile("rb") as asked:
        while line := asked.readline():
            method, fields = line.split()[0].decode(), {}
            while (field := asked.readline().strip()) != b"":
                name, _, value = field.decode().partition(":")
                fields[name.lower()] = value.strip()
            more, body = "", ""
            if method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nt=0 0\r\n"
                body += "m=video 0 RTP/AVP 33\r\na=control:track1\r\n"
                more = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
            elif method == "SETUP":
                more = f"Transport: {fields['transport']};interleaved=0-1\r\nSession: 1\r\n"
            elif method == "OPTIONS":
                more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY\r\n"
            link.sendall(f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{more}\r\n{body}".encode())
            if method == "PLAY":
                break
        parts = [data[at : at + _TS * _AT_ONCE] for at in range(0, len(data), _TS * _AT_ONCE)]
        begun = time.monotonic()
        for number, part in enumerate(parts):
            head = struct.pack(">BBHII", 0x80, 33, number & 0xFFFF, number * 90, 1)
            link.sendall(struct.pack(">BBH", 0x24, 0, len(head) + len(part)) + head + part)
            time.sleep(max(0.0, begun + seconds * number / len(parts) - time.monotonic()))
