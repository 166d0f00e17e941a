"""The model and its queue: each request has a thread, shares what it can, and is told on the way.

It is an ordinary `o3jax.Model.answer`, of which three steps are replaced: files are read in processes with
limits (`videos`), what is made of the same pixels is made once (`shared`), and texts are generated together
(`decoder`).
"""

from __future__ import annotations

import asyncio
import collections
import copy
import dataclasses
import functools
import hashlib
import re
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.serving.decoder import Decoder, Text, nbytes
from experiments.serving.shared import Shared
from experiments.serving.videos import Videos
from o3jax.api import Model
from o3jax.generate.continuous import Choice
from o3jax.generate.sampling import StopStrings
from o3jax.inference.respond import Steps, encode_visuals
from o3jax.models.batch import Batch
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures
from o3jax.prompts import grammar, templates
from o3jax.prompts.clock import Clock
from o3jax.report import Answer
from o3jax.searched import Event

_KEPT_BYTES = 2**30  # of what was made of pixels


class Full(Exception):
    """As many requests wait as may wait."""


class Leaving(Exception):
    """The server is about to end, and takes no more requests."""


class Cancelled(Exception):
    """Whoever asked has gone."""


class TooLate(Exception):
    """The request took longer than it may."""


@dataclasses.dataclass(frozen=True)
class Ask:
    """What one request asks for."""

    question: str
    video: Path | None  # None: the messages alone
    messages: tuple[dict[str, Any], ...] = ()
    fps: float | None = None
    start_s: float = 0.0
    end_s: float | None = None
    max_frames: int | None = None
    verify: str = "full"
    max_tokens: int = 768
    choice: Choice = Choice()
    stop: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Reply:
    """What a request is answered with."""

    text: str  # whole, as generated
    ended: bool  # by itself or by a stop string, not by the limit of tokens
    prompt_tokens: int
    tokens: int
    answer: Answer | None  # None where there is no video


class Job:
    """One request on its way.

    Its events are ("text", so far), ("progress", what, done, total), and at the end ("reply", Reply) or
    ("error", exception).
    """

    def __init__(self, ask: Ask, seconds: float):
        self.ask = ask
        self.asked = time.monotonic()
        self.events: asyncio.Queue = asyncio.Queue()
        self.gone = threading.Event()
        self.prompt_tokens = self.tokens = 0
        self.text, self.ended = "", False  # so far
        self._deadline = self.asked + seconds
        self._loop = asyncio.get_running_loop()

    def check(self) -> None:
        """Raises what ends the request."""
        if self.gone.is_set():
            raise Cancelled
        if time.monotonic() > self._deadline:
            raise TooLate

    def progress(self, event: Event) -> None:
        """Tells how far a search is."""
        self.check()
        self.tell("progress", event.stage, event.done_s, event.total_s)

    def tell(self, *event: Any) -> None:
        """Tells whoever asked, from any thread."""
        try:
            self._loop.call_soon_threadsafe(self.events.put_nowait, event)
        except RuntimeError:  # the loop has ended
            self.gone.set()


class Engine:
    """One model for many requests.

    Args:
        slots: texts that are generated at a time.
        max_tokens: of a text.
        queue: requests that may wait.
        seconds: that a request may take, its waiting included.
    """

    def __init__(
        self, model: Model, videos: Videos, *, slots: int, max_tokens: int, queue: int, seconds: float
    ):
        self.model, self.videos, self.queue, self.seconds = model, videos, queue, seconds
        self.decoder = Decoder(slots, max_tokens)
        self.leaving = False
        self.running = 0
        self._encoded = Shared(_KEPT_BYTES)
        self._waiting: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._first = threading.Lock()  # until programs are compiled, which each would do for itself
        self._compiled = False
        # More than slots: while some generate, others read and encode.
        for number in range(slots + 2):
            threading.Thread(target=self._work, name=f"request {number}", daemon=True).start()

    def submit(self, ask: Ask) -> Job:
        """Returns the job of a request, which waits for its turn; to be called on the event loop."""
        return self.submit_all([ask])[0]

    def submit_all(self, asks: list[Ask]) -> list[Job]:
        """Returns the jobs of requests that are taken together or not at all.

        Raises:
            Leaving, Full: they are not taken.
        """
        jobs = [Job(ask, self.seconds) for ask in asks]
        with self._changed:
            if self.leaving:
                raise Leaving
            if len(self._waiting) + len(jobs) > self.queue:
                raise Full
            self._waiting.extend(jobs)
            self._changed.notify(len(jobs))
        return jobs

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        """Whether a request waits or is worked on."""
        with self._changed:
            return bool(self._waiting or self.running)

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                job = self._waiting.popleft()
                self.running += 1
            try:
                self._answer(job)
            finally:
                with self._changed:
                    self.running -= 1

    def _answer(self, job: Job) -> None:
        try:
            job.check()
            if self._compiled:
                reply = self._reply(job)
            else:
                with self._first:
                    reply = self._reply(job)
                    self._compiled = True
            job.tell("reply", reply)
        except Exception as error:
            job.tell("error", error)

    def _reply(self, job: Job) -> Reply:
        ask, model = job.ask, copy.copy(self.model)
        model.open_video, model.open_sparse = self.videos.open, self.videos.open_sparse
        texts = _Texts(job, model)
        generate = functools.partial(self.decoder.generate, texts)
        model.steps = Steps(functools.partial(self._encode, job), generate)
        read = model.request

        def request(*given: Any, **options: Any) -> Any:
            found = read(*given, **options)
            texts.clock, texts.is_said = found[0].clock, found[0].search is None
            return found

        model.request = request
        if ask.video is None:
            return self._text_alone(job, model)
        answer = model.answer(
            ask.video,
            ask.question,
            fps=ask.fps,
            start_s=ask.start_s,
            end_s=ask.end_s,
            max_frames=ask.max_frames,
            max_new_tokens=ask.max_tokens,
            verify=ask.verify,
            progress=job.progress,
        )
        return _reply(job, answer)

    def _text_alone(self, job: Job, model: Model) -> Reply:
        quoted = model.processor.tokenizer.quoted
        messages = [
            {"role": m["role"], "content": [{"type": "text", "text": quoted(m["content"])}]}
            for m in job.ask.messages
        ]
        prompt = model.processor.apply_chat_template(messages)
        inputs = model.processor(text=[prompt], padding_side="right")
        model.generate(**inputs, max_new_tokens=job.ask.max_tokens)
        return _reply(job, None)

    def _encode(self, job: Job, model: Qwen3VL, batch: Batch) -> VisualFeatures:
        """Returns what the model makes of pixels, or has made of the same ones before."""
        job.check()
        digest = hashlib.blake2b(digest_size=20)
        for leaf in jax.tree.leaves(dataclasses.replace(batch, text=None, questions=None)):
            array = np.ascontiguousarray(leaf)
            digest.update(f"{array.shape}{array.dtype}".encode())
            digest.update(array)
        return self._encoded.get(digest.digest(), lambda: encode_visuals(model, batch), nbytes)


class _Texts:
    """Makes the texts of a request: the first is what was asked for, others serve to check it."""

    def __init__(self, job: Job, model: Model):
        self.job, self.model, self.first = job, model, True
        self.clock: Clock | None = None  # of the model, where that is not the video's
        self.is_said = True  # as it is made; a search may go on, and then another text is the answer
        self.stop = StopStrings(job.ask.stop, model.processor.decode)

    def __call__(self, prompt: np.ndarray) -> Text:
        job = self.job
        job.check()
        asked, self.first = self.first, False
        if not asked:
            return Text(Choice(), job.check, lambda tokens: None, job.ask.max_tokens)
        job.prompt_tokens = len(prompt)
        self.begun = templates.begun_by(self.model.processor.tokenizer, prompt.tolist())
        return Text(job.ask.choice, job.check, self._said, job.ask.max_tokens)

    def _said(self, tokens: np.ndarray) -> int | None:
        cut = self.stop.length(tokens) if self.stop.strings else None
        job, tokens = self.job, tokens[:cut]
        text = self.model.processor.decode(tokens)
        if cut is not None:
            text = text[: min(at for stop in self.stop.strings if (at := text.find(stop)) >= 0)]
        job.ended = cut is not None or int(tokens[-1]) in self.model.eos_ids
        if self.clock is not None:  # the model's times become the video's; a number may go on
            open_number = not job.ended and len(tokens) < job.ask.max_tokens
            text = self.clock.said(re.sub(r"[\d.]+$", "", text) if open_number else text)[0]
        job.text, job.tokens = grammar.whole(text, self.begun), len(tokens)
        if self.is_said:
            job.tell("text", job.text)
        return cut


def _reply(job: Job, answer: Answer | None) -> Reply:
    return Reply(job.text, job.ended, job.prompt_tokens, job.tokens, answer)
