"""A server with a key; and one that is asked to end while it works, is full, slow, or left."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import openai
import pytest

from experiments.serving.engine import Ask, Cancelled, Engine, Full, Leaving, TooLate
from experiments.serving.errors import as_api_error
from tests.support.server import MODEL, live, question, wait_for

KEY = "correct horse"


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    with live(tmp_path_factory.mktemp("keyed"), "--slots=4", O3JAX_API_KEY=KEY) as server:
        yield server


def test_a_key(keyed):
    """Everything but the page, its sign-in and the health of the server needs it."""
    for wrong in ("wrong", KEY + "x", "Correct horse"):
        with pytest.raises(openai.AuthenticationError, match="key is missing or wrong"):
            keyed.openai(api_key=wrong).models.list()
    for path in ("/v1/models", "/v1/files", "/metrics", "/openapi.json", "/nothing"):
        assert keyed.http.get(path).status_code == 401
    assert keyed.http.get("/").status_code == keyed.http.get("/healthz").status_code == 200
    assert [model.id for model in keyed.openai(api_key=KEY).models.list()] == [MODEL]
    assert keyed.http.post("/session", json={"key": "wrong"}).status_code == 401
    signed = keyed.http.post("/session", json={"key": KEY})
    cookie = signed.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and KEY not in cookie
    assert keyed.http.get("/v1/models").status_code == 200  # the client keeps the cookie
    evil = {"Origin": "https://evil.test"}
    assert keyed.http.post("/v1/files", headers=evil, content=b"").status_code == 403


def test_what_was_accepted_is_answered_before_the_end(keyed, clip):
    """The last test of this server: SIGTERM while four questions are worked on."""
    client, replies = keyed.openai(api_key=KEY), []
    with clip.open("rb") as file:
        video = client.files.create(file=file, purpose="vision").id

    def ask(number: int) -> None:
        messages = question(video, f"Which object appears first, of {number}?")
        replies.append(client.chat.completions.create(model=MODEL, messages=messages))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_for(lambda: sum(keyed.http.get("/healthz").json()[k] for k in ("running", "waiting")) == 4)
    keyed.process.send_signal(signal.SIGTERM)
    wait_for(lambda: keyed.http.get("/healthz").status_code == 503)
    with pytest.raises(openai.InternalServerError, match="about to end") as refused:
        client.chat.completions.create(model=MODEL, messages=question(video, "And now?"))
    assert refused.value.status_code == 503 and refused.value.response.headers["retry-after"]
    for thread in threads:
        thread.join()
    assert [reply.choices[0].finish_reason for reply in replies] == ["stop"] * 4
    assert keyed.process.wait(timeout=30) == 0


class Waiting:
    """A model whose answers wait to be let go."""

    folder, request = Path("waiting"), None

    def __init__(self):
        self.go, self.asked = threading.Event(), []

    def answer(self, video, text, **_):
        self.asked.append(text)
        self.steps.encode.args[0].check()
        assert self.go.wait(20)
        self.steps.encode.args[0].check()
        raise ValueError(text)


def in_engine(scenario, **changes):
    """Runs a coroutine function of an engine with one worker and two places in the queue."""
    model = Waiting()
    model.processor = SimpleNamespace(decode=str)
    videos = SimpleNamespace(open=None, open_sparse=None)
    engine = Engine(model, videos, **{"slots": 1, "max_tokens": 9, "queue": 2, "seconds": 60} | changes)
    try:
        asyncio.run(scenario(engine, model))
    finally:
        model.go.set()
        engine.decoder.close()


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


def test_a_full_queue_a_client_that_leaves_and_an_end():
    async def scenario(engine, model):
        jobs = []
        for number in range(5):  # three threads for one slot
            jobs.append(engine.submit(Ask(f"{number}", Path("x"))))
            await until(lambda: engine.waiting == max(0, len(jobs) - 3))
        with pytest.raises(Full):
            engine.submit(Ask("5", Path("x")))
        jobs[3].gone.set()
        engine.leaving = True
        with pytest.raises(Leaving):
            engine.submit(Ask("6", Path("x")))
        assert engine.busy
        model.go.set()
        found = [(await job.events.get())[1] for job in jobs]
        assert [type(error) for error in found] == [ValueError] * 3 + [Cancelled, ValueError]
        await until(lambda: not engine.busy)
        assert "3" not in model.asked and len(model.asked) == 4

    in_engine(scenario)


def test_a_request_that_takes_too_long():
    async def scenario(engine, model):
        job = engine.submit(Ask("slow", Path("x")))
        await until(lambda: model.asked)
        time.sleep(0.3)
        model.go.set()
        assert isinstance((await job.events.get())[1], TooLate)

    in_engine(scenario, seconds=0.2)


@pytest.mark.parametrize(
    "error, status, code",
    [(Full(), 429, "queue_full"), (Leaving(), 503, "shutting_down"), (TooLate(), 503, "timeout"),
     (OSError(28, "No space left on device"), 503, "disk"), (KeyError("secret"), 500, "internal_error")],
)  # fmt: skip
def test_errors_are_told(error, status, code):
    told = as_api_error(error)
    assert (told.status, told.code) == (status, code) and "secret" not in told.message
