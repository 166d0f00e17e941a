"""Who decides whether an open answer means the truth: a served model, a local one, or a rule.

V-STaR's published judge gives 0 to 3, 2 being right; a reply that is no number counts as -1, wrong. Every
reply is kept, so that no question is asked twice and a run can be taken up again.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from experiments.library.records import append_line, lines
from o3jax.errors import UserError
from o3jax.metrics import open_answer
from o3jax.metrics.parsers import words

URL, KEY = "O3JAX_JUDGE_URL", "O3JAX_JUDGE_KEY"
SYSTEM = """
As an AI assistant, your task is to evaluate a candidate answer in comparison to a given correct answer.
The question itself, the correct 'groundtruth' answer, and the candidate answer will be provided to you.
Your assessment should range from 0 to 3, based solely on the semantic similarity between the groundtruth \
and the candidate answer, disregarding any grammatical differences.
A rating of 0 suggests no similarity, implying the candidate answer is entirely incorrect.
A rating of 1 suggests low similarity, meaning the candidate answer is largely incorrect.
A rating of 2 suggests high similarity, meaning the candidate answer is largely correct.
Lastly, a rating of 3 indicates complete similarity, which means the candidate answer is entirely correct.
Your response should be a single integer from 0, 1, 2, or 3.
"""
USER = "Question: {}\nGroundtruth answer: {}\nCandidate answer: {}\nYour response: "
_MAX_REPLY = 1_000_000  # bytes
_RETRIES, _TIMEOUT_S = 4, 120.0
UNREADABLE = -1


class Question(NamedTuple):
    """What a judge is asked."""

    question: str
    truth: str
    answer: str


class Judge(Protocol):
    """Who replies."""

    name: str

    def reply(self, question: Question) -> str:
        """Returns the reply to one question."""


class Rule:
    """The rule for open answers of MMMU in place of a judge: 3 or 0."""

    name = "rule"

    def reply(self, question: Question) -> str:
        right = open_answer.is_right(question.truth.rstrip("."), words.mmmu_open(question.answer))
        return "3" if right else "0"


class Served:
    """A model behind an OpenAI-compatible address, which the environment names."""

    def __init__(self, model: str):
        url = os.environ.get(URL)
        if not url or not url.startswith(("http://", "https://")):
            raise UserError(f"--judge=openai:{model} needs the address in {URL}, such as http://host:8000/v1")
        self.name, self._model = f"openai:{model}", model
        self._url = f"{url.rstrip('/')}/chat/completions"
        self._key = os.environ.get(KEY, "")

    def reply(self, question: Question) -> str:
        said = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.format(*question)}]
        asked = {"model": self._model, "messages": said, "temperature": 0, "max_tokens": 512}
        for attempt in range(_RETRIES + 1):
            try:
                return self._post(asked)
            except urllib.error.HTTPError as error:
                if error.code not in (408, 409, 429) and error.code < 500:
                    raise UserError(
                        f"the judge at {self._url} refuses ({error.code} {error.reason})"
                    ) from None
                reason = f"{error.code} {error.reason}"
            except (OSError, ValueError, LookupError, TypeError) as error:
                reason = str(getattr(error, "reason", error))[:120] or type(error).__name__
            if attempt < _RETRIES:
                time.sleep(min(0.5 * 2**attempt, 20.0))
        raise UserError(
            f"the judge at {self._url} does not answer ({reason}): what it said so far is kept; run again "
            "when it is up"
        )

    def _post(self, asked: dict) -> str:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), headers)
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:
            value = json.loads(response.read(_MAX_REPLY))
        content = value["choices"][0]["message"]["content"]
        if not isinstance(content, str):
            raise ValueError("no text in the reply")
        return content


class Local:
    """A model folder of one's own."""

    def __init__(self, folder: str):
        from o3jax import api

        self._model = api.load(folder)
        self.name = f"local:{self._model.folder.name}"

    def reply(self, question: Question) -> str:
        said = [
            {"role": "system", "content": [{"type": "text", "text": SYSTEM}]},
            {"role": "user", "content": [{"type": "text", "text": USER.format(*question)}]},
        ]
        model = self._model
        inputs = model.processor(text=[model.processor.apply_chat_template(said)], padding_side="left")
        return model.processor.decode(model.generate(**inputs, max_new_tokens=16)[0])


def make_judge(name: str) -> Judge | None:
    """Returns the judge of a flag: none, rule, openai:MODEL or a model's folder.

    Raises:
        UserError: if there is no such judge, or the environment does not say where it is.
    """
    if name == "none":
        return None
    if name == "rule":
        return Rule()
    kind, _, model = name.partition(":")
    return Served(model) if kind == "openai" and model else Local(name)


def read_score(reply: str) -> int:
    """Returns the judge's 0 to 3, or -1 where the reply is no such integer, as published."""
    try:
        score = int(reply.strip()) if len(reply) < 100 else UNREADABLE
    except ValueError:
        return UNREADABLE
    return score if 0 <= score <= 3 else UNREADABLE


def judged(
    judge: Judge,
    questions: Sequence[Question],
    path: Path,
    *,
    workers: int = 8,
    budget: int | None = None,
    on_reply: Callable[[], None] = lambda: None,
) -> list[str]:
    """Returns the judge's reply to each question; those in the file are not asked for again.

    Args:
        path: of the file of replies, which are added as they come.
        workers: questions on their way at a time.
        budget: how many may be asked for at most; None: all.

    Raises:
        UserError: if the judge does not answer or the budget is too small; what it said is kept.
    """
    known = _known(path)
    keys = [
        hashlib.sha256(json.dumps([judge.name, SYSTEM, USER, *q]).encode()).hexdigest() for q in questions
    ]
    wanted = {key: q for key, q in zip(keys, questions, strict=True) if key not in known}
    if budget is not None and len(wanted) > budget:
        raise UserError(
            f"the judge has {len(wanted)} answers to read, and --judge_budget is {budget}: raise it"
        )
    lock = threading.Lock()

    def ask(key: str, question: Question) -> None:
        reply = judge.reply(question)
        with lock:
            append_line(path, {"key": key, "judge": judge.name, "reply": reply})
            known[key] = reply
            on_reply()

    with concurrent.futures.ThreadPoolExecutor(1 if isinstance(judge, Local) else workers) as pool:
        running = [pool.submit(ask, *one) for one in wanted.items()]
        try:
            for one in concurrent.futures.as_completed(running):
                one.result()
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    return [known[key] for key in keys]


def _known(path: Path) -> dict[str, str]:
    return {row["key"]: str(row["reply"]) for row in lines(path) if {"key", "reply"} <= row.keys()}
