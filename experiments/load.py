"""Load on a server of `o3jax serve`: what it answers, what it loses, how long it takes, what it costs.

    python -m experiments.load [--requests=200 --clients=16 --out=load.json]

Starts a server on loopback, asks it from many clients, among them those who leave, send too much, are slow
or hostile; compares each answer with the one that its question gets alone; then asks it to end under load.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from experiments.cli import shell
from o3jax.errors import UserError
from o3jax.files import write_json

_REQUESTS = flags.DEFINE_integer("requests", 200, "Of the mixed load.", 10)
_CLIENTS = flags.DEFINE_integer("clients", 16, "That ask at the same time.", 2)
_VIDEOS = flags.DEFINE_integer("videos", 6, "That are asked about.", 1)
_MODEL = flags.DEFINE_string("model_path", "o3-tiny", "The model.")
_OUT = flags.DEFINE_string("out", None, "Also write the figures as JSON to this file.")
# Of each ten requests so many are not ordinary ones.
_KINDS = ("leaves", "large", "hostile", "slow")


class _Server:
    """A server of its own process."""

    def __init__(self, folder: Path, queue: int):
        command = [sys.executable, "-m", "experiments.serve", "--port=0", f"--workdir={folder}"]
        command += [f"--model_path={_MODEL.value}", f"--max_queue={queue}", "--max_body_mib=1"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        found = re.search(r"http://(\S+):(\d+)", self.process.stdout.readline())
        if not found:
            raise UserError("the server did not start; its own words are above")
        self.host, self.port = found[1], int(found[2])

    def memory(self) -> int:
        """Returns the resident bytes of the server, without the processes that read."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+) kB", status)[1]) * 1024

    def processor_s(self) -> float:
        """Returns the processor time that the server has taken, without the processes that read."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def post(self, path: str, body: bytes, kind: str = "application/json") -> tuple[int, dict[str, Any]]:
        """Returns the status and the JSON of a response; status 0 where there is none."""
        request = urllib.request.Request(
            f"http://{self.host}:{self.port}{path}", body, {"Content-Type": kind}
        )
        try:
            with urllib.request.urlopen(request, timeout=600) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, ValueError):
            return 0, {}

    def upload(self, path: Path) -> str:
        """Returns the id of an uploaded file."""
        edge = "----load"
        head = f'--{edge}\r\nContent-Disposition: form-data; name="file"; filename="{path.name}"\r\n\r\n'
        body = head.encode() + path.read_bytes() + f"\r\n--{edge}--\r\n".encode()
        return self.post("/v1/files", body, f"multipart/form-data; boundary={edge}")[1]["id"]

    def ask(self, video: str, question: str) -> tuple[int, str]:
        """Returns the status and what the model wrote."""
        status, found = self.post("/v1/chat/completions", _chat(video, question))
        return status, found["choices"][0]["o3"]["raw"] if status == 200 else ""

    def send(self, request: bytes, wait: float) -> bytes:
        """Returns the first bytes that come back in a time; nothing where none do."""
        with socket.create_connection((self.host, self.port), timeout=10) as connection:
            connection.sendall(request)
            connection.settimeout(wait)
            try:
                return connection.recv(100)
            except OSError:
                return b""


def _chat(video: str, question: str) -> bytes:
    content = [{"type": "video_url", "video_url": {"url": video}}, {"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": Path(_MODEL.value).name, "messages": messages}).encode()


def _unkind(server: _Server, kind: str, video: str, question: str) -> bool:
    """Does what no client should, and returns whether the server met it as it should."""
    body = _chat(video, question)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {server.host}\r\nContent-Type: application/json\r\n"
    if kind == "leaves":
        server.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, random.uniform(0.05, 0.5))
        return True
    if kind == "large":
        return server.send(f"{head}Content-Length: {2**22}\r\n\r\n".encode(), 60).startswith(b"HTTP/1.1 413")
    if kind == "hostile":
        return server.ask("../../etc/passwd", question)[0] in (400, 404, 422)
    slow = threading.Event()
    with socket.create_connection((server.host, server.port), timeout=10) as connection:
        for part in (head[:30], head[30:], f"Content-Length: {len(body)}\r\n\r\n"):
            connection.sendall(part.encode())
            slow.wait(0.3)
        connection.sendall(body)
        connection.settimeout(600)
        return connection.recv(100).startswith(b"HTTP/1.1 200")


def main(argv: Sequence[str]) -> None:
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        asked = _questions(folder)
        server = _Server(folder / "serve", _REQUESTS.value)
        try:
            ids = {path: server.upload(path) for path in dict.fromkeys(path for path, _ in asked)}
            pairs = [(ids[path], question) for path, question in asked]
            _run(server, pairs[: 2 * _CLIENTS.value], _CLIENTS.value)  # programs are compiled
            used = [server.processor_s()]
            alone, figures["alone_s"] = _run(server, pairs, 1)
            used.append(server.processor_s())
            together, figures["together_s"] = _run(server, pairs, _CLIENTS.value)
            used.append(server.processor_s())
            # Of the server for a question: what others do on the machine changes it little.
            names = ("processor_s_alone", "processor_s_together")
            figures |= zip(names, np.diff(used) / len(pairs), strict=True)
            figures["questions"] = len(pairs)
            figures["times_as_fast"] = figures["alone_s"] / figures["together_s"]
            figures["differ"] = sum(a[:2] != b[:2] for a, b in zip(alone, together, strict=True))
            expected = {pair: text for pair, (_, text, _) in zip(pairs, alone, strict=True)}
            figures |= _mixed(server, pairs, expected)
            figures |= _ending(server, pairs)
        finally:
            server.process.kill()
        figures |= _library(asked)
    figures["times_the_library"] = figures["library_s"] / figures["together_s"]
    figures["load_average"] = os.getloadavg()[0]
    for name, value in figures.items():
        print(f"{name:24}{value:.3g}" if isinstance(value, float) else f"{name:24}{value}")
    if _OUT.value:
        write_json(_OUT.value, figures)


def _questions(folder: Path) -> list[tuple[Path, str]]:
    """Returns videos and questions about them, in an order that mixes them."""
    asked = []
    for number in range(_VIDEOS.value):
        scene, path = make_scene(10_000 + number, questions=5), folder / f"{number}.mp4"
        write_video(scene, path)
        asked += [(path, sample.question) for sample in make_samples(scene)]
    random.Random(0).shuffle(asked)
    return (asked * (_REQUESTS.value // len(asked) + 1))[: _REQUESTS.value]


def _run(server: _Server, pairs: list[tuple[str, str]], clients: int) -> tuple[list, float]:
    """Returns (status, text, seconds) of each question, and how long all took."""

    def one(pair: tuple[str, str]) -> tuple[int, str, float]:
        begun = time.monotonic()
        return *server.ask(*pair), time.monotonic() - begun

    begun = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, pairs)), time.monotonic() - begun


def _mixed(server: _Server, pairs: list, expected: dict) -> dict[str, Any]:
    """Returns what becomes of requests of which four in ten are unkind."""
    chance, seconds, met, memory = random.Random(1), [], Counter(), []
    kinds = [chance.choice(_KINDS) if chance.random() < 0.4 else "" for _ in pairs]

    def one(job: tuple[str, tuple[str, str]]) -> None:
        kind, pair = job
        begun = time.monotonic()
        if kind:
            met[f"{kind}, as it should be" if _unkind(server, kind, *pair) else f"{kind}, WRONG"] += 1
        else:
            status, text = server.ask(*pair)
            good = status == 200 and text == expected[pair]
            met["answered as alone" if good else f"LOST OR DIFFERENT ({status})"] += 1
            seconds.append(time.monotonic() - begun)
        memory.append(server.memory())

    with concurrent.futures.ThreadPoolExecutor(_CLIENTS.value) as pool:
        list(pool.map(one, zip(kinds, pairs, strict=True)))
    half = len(memory) // 2
    return {
        "mixed": dict(sorted(met.items())),
        "p50_s": float(np.quantile(seconds, 0.5)),
        "p95_s": float(np.quantile(seconds, 0.95)),
        "memory_mib_half_way": int(np.median(memory[half : half + 10])) >> 20,
        "memory_mib_at_the_end": int(np.median(memory[-10:])) >> 20,
    }


def _ending(server: _Server, pairs: list) -> dict[str, Any]:
    """Returns what becomes of requests while the server is asked to end."""
    statuses: Counter = Counter()

    def client(number: int) -> None:
        for pair in pairs[number :: _CLIENTS.value]:
            try:
                socket.create_connection((server.host, server.port), timeout=10).close()
            except OSError:  # it listens no more: nothing was accepted
                return
            statuses[server.ask(*pair)[0]] += 1
            if server.process.poll() is not None:
                return

    threads = [threading.Thread(target=client, args=(number,)) for number in range(_CLIENTS.value)]
    for thread in threads:
        thread.start()
    time.sleep(2)
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    return {
        "statuses_while_ending": {str(status): count for status, count in sorted(statuses.items())},
        "exit_code": server.process.wait(timeout=60),
    }


def _library(asked: list[tuple[Path, str]]) -> dict[str, float]:
    """Returns how long the library takes to answer the same questions, one after the other."""
    import o3jax

    shell.use_compilation_cache()
    model = o3jax.load(_MODEL.value)
    for path, question in asked[:10]:
        model.answer(path, question)
    begun = time.monotonic()
    for path, question in asked:
        model.answer(path, question)
    return {"library_s": time.monotonic() - begun}


if __name__ == "__main__":
    shell.run(main)
