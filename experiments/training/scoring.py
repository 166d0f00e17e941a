"""Rewards of many completions at a time: in processes that may hang or die, each with a time limit.

A reward function that raises, returns no finite number, takes too long or ends its process costs one
completion: that one counts as the fallback and says why; the others are as they would be without it.
"""

from __future__ import annotations

import dataclasses
import math
import pickle
import queue
import resource
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from o3jax.child import Child, Died, clock, limit_memory
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.rewards import registry

_CHUNK = 8  # completions in one request
_Answer = tuple[str, Any]  # ("terms", dictionary) or ("error", sentence)


@dataclasses.dataclass(frozen=True)
class Scored:
    """What one completion is worth."""

    terms: dict[str, float]  # by name, without the total; empty where there is an error
    total: float
    error: str | None = None  # one line that names the completion; its total is the fallback then


class Scorer:
    """Scores completions by a named reward, in `workers` processes at a time."""

    LEAST = 100  # completions that a share is of, at least: one failure among the first is no reason to stop

    def __init__(
        self,
        name: str,
        *,
        options: Mapping[str, Any] | None = None,
        workers: int = 2,
        time_limit_s: float = 10.0,
        fallback: float = 0.0,
        max_failed_share: float = 0.05,
        max_memory_bytes: int = 8 * 2**30,
    ):
        """Starts the first process.

        Args:
            name: of the reward, see `o3jax.rewards.registry`.
            options: its keyword arguments, plain data.
            time_limit_s: for each completion.
            fallback: the total of a completion that cannot be scored.
            max_failed_share: of all completions so far; with more, `is_over()`.
            max_memory_bytes: what each process may hold.

        Raises:
            UserError: if the reward cannot be had, has no such option, or an argument makes no sense.
        """
        if workers < 1 or not time_limit_s > 0 or not math.isfinite(fallback):
            raise UserError("scoring needs workers >= 1, time_limit_s > 0 and a finite fallback")
        self.name, self.fallback, self.time_limit_s = name, fallback, time_limit_s
        self.max_failed_share = max_failed_share
        self.scored = 0
        self.failed = 0
        self._hello = pickle.dumps((name, dict(options or {}), time_limit_s, max_memory_bytes))
        self._children: queue.SimpleQueue[Child | None] = queue.SimpleQueue()
        self._children.put(self._start())
        for _ in range(workers - 1):
            self._children.put(None)  # started when there is work for it
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="scoring")

    def score(
        self,
        completions: Sequence[str],
        records: Sequence[Mapping[str, Any]],
        evidence: Sequence[Sequence[Grounding] | None] | None = None,
        step_percent: float = 0.0,
    ) -> list[Scored]:
        """Returns one result for each completion, in their order.

        Args:
            completions: texts.
            records: what each of them answers, see `o3jax.rewards.registry`.
            evidence: the evidence modules' estimates for each; a reward without
                such a parameter does not see them.
            step_percent: share of the training that is over, likewise.
        """
        if evidence is None:
            evidence = [None] * len(completions)
        jobs = list(zip(completions, records, evidence, strict=True))
        chunks = [(jobs[i : i + _CHUNK], step_percent) for i in range(0, len(jobs), _CHUNK)]
        answers = [answer for chunk in self._threads.map(self._ask, chunks) for answer in chunk]
        results = []
        for number, ((status, value), (_, record, _)) in enumerate(zip(answers, jobs, strict=True)):
            if status == "terms":
                total = value.pop("total")
                results.append(Scored(value, total))
            else:
                sample = f"record {record['id']!r:.80}" if "id" in record else "a record without id"
                error = f"completion {number}, of {sample}: {value}; it counts as {self.fallback:g}"
                results.append(Scored({}, self.fallback, error))
        self.scored += len(results)
        self.failed += sum(result.error is not None for result in results)
        return results

    def is_over(self, failed: int | None = None, scored: int | None = None) -> bool:
        """Whether more than `max_failed_share` of all completions so far could not be scored.

        Args:
            failed, scored: of all hosts together; this one's by default.
        """
        failed, scored = (self.failed, self.scored) if failed is None else (failed, scored)
        return failed > self.max_failed_share * max(scored, self.LEAST)

    def close(self) -> None:
        """Ends the processes."""
        self._threads.shutdown()
        while not self._children.empty():
            if (child := self._children.get()) is not None:
                child.end()

    def __enter__(self) -> Scorer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> Child:
        """Returns a new process, which has the reward."""
        try:
            child = Child("experiments.training.scoring:serve", self._hello)
        except Died as died:
            raise UserError(
                f"reward {self.name!r:.200} cannot be had: importing it, the process {died}; mend its module"
            ) from None
        if child.greeting is not None:
            child.end()
            raise UserError(child.greeting)
        return child

    def _ask(self, chunk: tuple[list[tuple], float]) -> list[_Answer]:
        """Returns the answers for some completions; a new process goes on behind one that ended the last."""
        jobs, step_percent = chunk
        answers: list[_Answer] = []
        child = self._children.get()
        try:
            while len(answers) < len(jobs):
                child = self._ready(child, pickle.dumps((jobs[len(answers) :], step_percent)))
                try:
                    while len(answers) < len(jobs):
                        answers.append(child.receive(self.time_limit_s))
                except Died as died:
                    late = f"the reward took longer than time_limit_s = {self.time_limit_s:g} s"
                    answers.append(("error", late if died.late else f"the reward's process {died}"))
                    child.end()
                    child = None
        except BaseException:  # an answer that nobody took would be taken for another one
            if child is not None:
                child.end()
            child = None
            raise
        finally:
            self._children.put(child)
        return answers

    def _ready(self, child: Child | None, request: bytes) -> Child:
        """Returns a process that has got the request: this one, or a new one if it ended meanwhile."""
        if child is not None:
            try:
                child.send(request)
                return child
            except Died:
                child.end()
        child = self._start()
        child.send(request)
        return child


def serve(pipe: Connection, hello: bytes) -> None:
    """Answers requests in a child: one answer for each completion, as soon as it is known."""
    name, options, time_limit_s, max_memory_bytes = pickle.loads(hello)
    limit_memory(resource.RLIMIT_DATA, max_memory_bytes)
    try:
        reward = registry.prepare(name, options)
    except UserError as error:
        pipe.send(str(error))
        return
    pipe.send(None)
    while True:
        try:
            jobs, step_percent = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        for completion, record, evidence in jobs:
            with clock(time_limit_s):
                try:
                    context = {"step_percent": step_percent}
                    context |= {} if evidence is None else {"evidence": evidence}
                    answer = "terms", reward(completion, record, **context)
                except UserError as error:
                    answer = "error", " ".join(str(error).split())[:300]
                except BaseException as error:
                    said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                    answer = "error", f"the reward raised {said}"
            pipe.send(answer)
