"""Attacks on a live server: each is refused in a moment, or bounded, and the server goes on."""

from __future__ import annotations

import http.server
import json
import os
import socket
import struct
import threading
import time
import zlib

import openai
import pytest

from experiments.serving import files as files_module
from experiments.serving.errors import ApiError
from experiments.serving.files import Files
from experiments.serving.server import _HEADERS_S
from tests.support.server import MODEL, question


@pytest.fixture(scope="module", autouse=True)
def still_there(server):
    """After all of it the server answers."""
    yield
    assert server.http.get("/healthz").json()["status"] == "ok"


def refused(server, url, *, status):
    """Returns the error of a question about a URL, which has this status."""
    body = {"model": MODEL, "messages": question(url, "What?")}
    response = server.http.post("/v1/chat/completions", json=body)
    assert response.status_code in status, response.text
    return response.json()["error"]["message"]


@pytest.mark.parametrize(
    "name",
    ["../../log", "..%2f..%2flog", "%2e%2e/log", "file-" + "0" * 24, "file-x/../../log", "%00", "x" * 5000],
)
@pytest.mark.parametrize("route", ["/v1/files/{}", "/v1/files/{}/content", "/v1/answers/{}/report"])
def test_ids_lead_nowhere(server, route, name):
    """As it is written on the wire: clients would tidy the path."""
    path = route.format(name)
    said = server.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    assert said.split(b" ", 2)[1] in (b"404", b"405", b"400"), said[:200]


@pytest.mark.parametrize(
    "path",
    ["../log", "sub/../../log", "/etc/passwd", "link.mp4", "linked/log", "", ".", "none", "a\0b", "x" * 9000],
)
def test_the_media_root_is_not_left(server, media, path):
    outside = media.parent / "outside.mp4"
    outside.write_bytes(b"secret")
    for name, target in (("link.mp4", outside), ("linked", media.parent)):
        if not (media / name).is_symlink():
            os.symlink(target, media / name)
    said = refused(server, path, status=(400, 404, 422))
    assert str(media.parent) not in said and "secret" not in said


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data",
        "http://2130706433:9/x",  # 127.0.0.1 as one number
        "http://0x7f000001:9/",
        "http://0177.0.0.1:9/",
        "http://127.1:9/x",
        "http://[::1]:9/x",
        "http://[::ffff:127.0.0.1]:9/x",
        "http://localhost:9/",
        "http://127.0.0.1:9@evil.test/x",
        "http://evil.test#127.0.0.1:9",
        "http://127.0.0.1:80/x",
        "http://127.0.0.1/x",
        "http://evil.test\\@127.0.0.1:9/",
        "http://127.0.0.1:9\r\nHost: x/",
        "HTTP://EVIL.test/",
        "file:///etc/passwd",
        "FILE:/etc/passwd",
        "ftp://127.0.0.1:9/x",
        "rtsp://127.0.0.1:9/x",
        "concat:/etc/passwd|x",
        "gopher://127.0.0.1:9/",
        "//127.0.0.1:9/x",
    ],
)
def test_nothing_is_fetched_from_elsewhere(server, url):
    said = refused(server, url, status=(400, 404, 422))
    assert "root:" not in said


def test_an_allowed_host_and_its_redirects(tmp_path, clip):
    """What it serves is fetched; where it sends us is not; what is too large, or slow, is not kept."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith("/to"):
                self.send_response(302)
                self.send_header("Location", "http://169.254.169.254/")
                self.end_headers()
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(clip.read_bytes() if "clip" in self.path else b"\0" * 200_000)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as origin:
        threading.Thread(target=origin.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{origin.server_port}"
        files = Files(tmp_path, None, most_bytes=100_000, most_files=9, hosts=[host])
        found = files.medium(f"http://{host}/my%20clip.mp4?a=b%20c")
        assert found.path.read_bytes() == clip.read_bytes() and found.name == "my clip.mp4"
        assert asked == ["/my%20clip.mp4?a=b%20c"]
        for path, said in (("to", "answers 302"), ("large", "larger than")):
            with pytest.raises(ApiError, match=said):
                files.medium(f"http://{host}/{path}")
        with pytest.raises(ApiError, match="fetches nothing"):
            files.medium(f"http://user@{host}/clip")
        origin.shutdown()
    assert [path.name.split("-")[0] for path in tmp_path.iterdir()] == ["passing"]


def test_what_came_with_requests_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(files_module, "_PASSING", 3)
    files = Files(tmp_path, None, most_bytes=1000, most_files=9)
    for number in range(8):
        files.medium(f"data:video/mp4;base64,{number:04d}")
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.test"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Host": "evil.test"},
        {"Host": "127.0.0.1.evil.test"},
        {"Host": ""},
    ],
)
def test_pages_of_other_origins_change_nothing(server, uploaded, headers):
    for method, path in (("DELETE", f"/v1/files/{uploaded}"), ("POST", "/v1/chat/completions")):
        response = server.http.request(method, path, headers=headers, content=b"{}")
        assert response.status_code == 403, response.text
        assert "access-control-allow-origin" not in response.headers
    own = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert server.http.post("/session", headers=own, json={"key": ""}).status_code == 200


def test_names_and_questions_are_text(server, clip):
    """A script in a file's name or a question is neither run nor kept as one."""
    script = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e"
    client = server.openai()
    file = client.files.create(file=(f"{script}.mp4", clip.read_bytes()), purpose="vision")
    assert "\u202e" not in file.filename
    (choice,) = client.chat.completions.create(
        model=MODEL, messages=question(file.id, f"When? {script} {{{{7*7}}}}")
    ).choices
    page = server.http.get(choice.o3["report"])
    assert "<script>alert" not in page.text and "<img src=x" not in page.text and "{{7*7}}" in page.text
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'self'" in policy
    policy = server.http.get("/").headers["content-security-policy"]
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    for path in ("/", "/app.js", "/v1/files", "/nothing"):
        assert server.http.get(path).headers["x-content-type-options"] == "nosniff"


def bomb(side: int) -> bytes:
    """Returns a PNG of side x side black pixels, a thousandth of their bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side // 8 + 1) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_small_file_with_many_pixels(server):
    client = server.openai()
    begun = time.monotonic()
    with pytest.raises(openai.UnprocessableEntityError):
        client.files.create(file=("bomb.png", bomb(40_000)), purpose="vision")
    assert time.monotonic() - begun < 30


def post(path: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


MIB = b"100000\r\n" + b" " * 2**20 + b"\r\n"


@pytest.mark.parametrize(
    "said, statuses",
    [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n", (b"400", b"")),
        (post("/v1/files", "Content-Length: 99999999999999999999"), (b"413", b"400")),
        (post("/v1/files", "Content-Length: -1"), (b"400", b"413")),
        (post("/v1/chat/completions", "Content-Length: 3", body=b'{"a'), (b"400",)),
        (post("/v1/chat/completions", "Transfer-Encoding: chunked", body=3 * MIB + b"0\r\n\r\n"), (b"413",)),
        (b"NONSENSE\r\n\r\n", (b"400",)),
    ],
    ids=["headers", "length", "negative", "cut", "chunks", "nonsense"],
)
def test_absurd_requests(server, said, statuses):
    assert server.raw(said)[9:12] in statuses


def test_deep_json_and_half_characters(server):
    send = {"Content-Type": "application/json"}
    for body in (b"[" * 200_000, b'{"a":' * 50_000, b'{"model": "\\ud800", "messages": []}'):
        response = server.http.post("/v1/chat/completions", content=body, headers=send)
        assert response.status_code in (400, 422)
    body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "\ud800"}]})
    response = server.http.post("/v1/chat/completions", content=body.encode(), headers=send)
    assert response.status_code == 422 and "unicode" in response.json()["error"]["message"]


def test_slow_clients_lose_their_connection(server):
    """A header a second, for ever; and a connection that says nothing. Others are served meanwhile."""
    begun, ended = time.monotonic(), []

    def drip(first: bytes) -> None:
        with socket.create_connection(("127.0.0.1", server.port)) as slow:
            slow.settimeout(0.5)
            slow.sendall(first)
            while time.monotonic() - begun < 3 * _HEADERS_S:
                try:
                    if first:
                        slow.sendall(b"X: y\r\n")
                    if not slow.recv(100):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            ended.append(time.monotonic() - begun)

    again = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HTTP/1.1\r\n"
    clients = [threading.Thread(target=drip, args=(b,)) for b in [b"GET / HTTP/1.1\r\n"] * 20 + [b"", again]]
    for client in clients:
        client.start()
    assert server.http.get("/healthz").status_code == 200
    for client in clients:
        client.join()
    assert len(ended) == 22 and max(ended) < 2 * _HEADERS_S
