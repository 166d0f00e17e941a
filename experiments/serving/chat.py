"""/v1/chat/completions: from OpenAI's request to questions, and from replies to OpenAI's answer."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from experiments.serving.answers import Answers
from experiments.serving.engine import Ask, Cancelled, Engine, Job, Reply
from experiments.serving.errors import ApiError, as_api_error
from experiments.serving.files import Files, Medium, named
from experiments.serving.metrics import Metrics
from experiments.serving.schema import ChatRequest, ImagePart, VideoPart
from experiments.serving.texts import shown
from o3jax.generate.continuous import Choice
from o3jax.report import question_language

_LOOK_S = 0.2  # between two looks whether the client is still there


class Chat:
    """Answers chat requests."""

    def __init__(self, engine: Engine, files: Files, answers: Answers, metrics: Metrics, max_tokens: int):
        self.engine, self.files, self.answers, self.metrics = engine, files, answers, metrics
        self.max_tokens = max_tokens
        self.name = engine.model.folder.name

    async def __call__(self, body: ChatRequest, request: Request) -> Response:
        """Returns the response to a request: JSON, or a stream of events."""
        begun = time.monotonic()
        try:
            response = await self._respond(body, request)
        except Exception as error:
            if not isinstance(error, ApiError):
                error = self._error(error, None)
            response = error.response()
        self.metrics.requests.labels(str(response.status_code)).inc()
        self.metrics.seconds.observe(time.monotonic() - begun)
        return response

    async def _respond(self, body: ChatRequest, request: Request) -> Response:
        if body.model != self.name:
            raise ApiError(
                404, f"the model {body.model!r} is not served, {self.name!r} is", "model_not_found"
            )
        ask, medium = await asyncio.to_thread(self._ask, body)
        head = _Head(self.name, f"chatcmpl-{secrets.token_hex(12)}", int(time.time()))
        asks = [_numbered(ask, body, number) for number in range(body.n or 1)]
        jobs = self.engine.submit_all(asks)
        watch = asyncio.create_task(_watch(request, jobs))
        if not body.stream:
            try:
                choices = await asyncio.gather(*(self._choice(job, medium, n) for n, job in enumerate(jobs)))
            except BaseException:
                _cancel(jobs)
                raise
            finally:
                watch.cancel()
            found = [choice for choice, _ in choices]
            return JSONResponse(head.of("chat.completion", found, _usage(reply for _, reply in choices)))
        # An error before the first event is one of HTTP.
        streams = [self._deltas(job, medium, number) for number, job in enumerate(jobs)]
        try:
            first = await anext(streams[0])
        except BaseException:
            _cancel(jobs)
            watch.cancel()
            raise
        usage = bool(body.stream_options and body.stream_options.include_usage)
        events = self._events(head, jobs, streams, first, usage, watch)
        return StreamingResponse(events, media_type="text/event-stream")

    def _ask(self, body: ChatRequest) -> tuple[Ask, Medium | None]:
        """Returns what is asked, and about what."""
        media = [
            part.video_url.url if isinstance(part, VideoPart) else part.image_url.url
            for message in body.messages
            for part in message.parts()
            if isinstance(part, VideoPart | ImagePart)
        ]
        texts = [message.text() for message in body.messages]
        if len(media) > 1:
            raise ApiError(400, f"a request is about one video or image, not {len(media)}", "too_many_media")
        max_tokens = min(body.max_completion_tokens or body.max_tokens or self.max_tokens, self.max_tokens)
        stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
        choice = Choice(body.temperature or 0.0, 1.0 if body.top_p is None else body.top_p)
        shared = {"max_tokens": max_tokens, "stop": stop, "choice": choice}
        roles = [message.role for message in body.messages]
        if not media:
            if not any(text.strip() for text in texts):
                raise ApiError(400, "the messages are empty: ask something", "empty")
            messages = [
                {"role": "system" if role == "developer" else role, "content": text}
                for role, text in zip(roles, texts, strict=True)
            ]
            return Ask(texts[-1], None, tuple(messages), **shared), None
        if roles.count("user") > 1 or "assistant" in roles:
            raise ApiError(
                400, "a question about a video is one turn: send it without those before", "one_turn"
            )
        question = "\n".join(filter(None, texts))
        medium = self.files.medium(media[0])
        with named(medium.name, medium.path):
            self.files.videos.info(medium.path)
        part = {name: getattr(body, name) for name in ("fps", "start_s", "end_s", "max_frames")}
        return Ask(question, medium.path, verify=body.verify or "full", **part, **shared), medium

    async def _choice(self, job: Job, medium: Medium | None, number: int) -> tuple[dict[str, Any], Reply]:
        async for kind, *rest in _events_of(job):
            if kind == "error":
                raise self._error(rest[0], medium)
            if kind == "reply":
                reasoning, content, o3 = await asyncio.to_thread(self._told, job, rest[0], medium)
                message = {"role": "assistant", "content": content, "reasoning_content": reasoning or None}
                message["refusal"] = None
                end = "stop" if rest[0].ended else "length"
                choice = {"index": number, "message": message, "finish_reason": end, "logprobs": None}
                return choice | {"o3": o3}, rest[0]
        raise Cancelled

    async def _deltas(self, job: Job, medium: Medium | None, number: int) -> AsyncIterator[Any]:
        """Yields the pieces of a choice, and at last its reply."""
        said, first, language = ["", ""], True, question_language(job.ask.question)

        def piece(texts: tuple[str, str]) -> dict[str, str]:
            delta = {}
            for at, name in enumerate(("reasoning_content", "content")):
                if len(texts[at]) > len(said[at]) and texts[at].startswith(said[at]):
                    delta[name] = texts[at][len(said[at]) :]
                    said[at] = texts[at]
            return delta

        def choice(delta: dict[str, Any], end: str | None = None) -> dict[str, Any]:
            return {"index": number, "delta": delta, "finish_reason": end, "logprobs": None}

        async for kind, *rest in _events_of(job):
            if kind == "error":
                raise self._error(rest[0], medium)
            if first:
                first = False
                yield choice({"role": "assistant", "content": ""})
            if kind == "progress":
                yield choice({}) | {
                    "o3": {"progress": dict(zip(("what", "done", "total"), rest, strict=True))}
                }
            elif kind == "text":
                if not any(said):
                    self.metrics.first.observe(time.monotonic() - job.asked)
                if delta := piece(shown(rest[0], language, final=False)):
                    yield choice(delta)
            elif kind == "reply":
                reasoning, content, o3 = await asyncio.to_thread(self._told, job, rest[0], medium)
                delta = piece((reasoning, content))
                yield choice(delta, "stop" if rest[0].ended else "length") | {"o3": o3}
                yield rest[0]

    def _told(self, job: Job, reply: Reply, medium: Medium | None) -> tuple[str, str, dict[str, Any] | None]:
        """Returns the reasoning, the answer, and everything else that is known of it."""
        reasoning, content = shown(reply.text, question_language(job.ask.question), final=True)
        if reply.answer is None:
            return reasoning, content, None
        if not job.ask.stop:  # cut off in its reasoning, it has no answer: what was said stands for one
            content = content or reply.answer.text
            if reply.answer.search:
                reasoning, content = reply.answer.reasoning, reply.answer.text
        name = self.answers.add(reply.answer, medium)
        fields = reply.answer.to_dict()
        fields["video"]["path"] = medium.name
        fields |= {"id": name, "answer": fields.pop("text"), "report": f"/v1/answers/{name}/report"}
        fields["part"] = {name: getattr(job.ask, name) for name in ("start_s", "end_s", "max_frames")}
        return reasoning, content, fields

    async def _events(
        self, head: _Head, jobs: list[Job], streams: list, first: Any, usage: bool, watch: asyncio.Task
    ) -> AsyncIterator[str]:
        """Yields the server-sent events of all choices as they come."""
        replies: list[Reply] = []
        merged: asyncio.Queue = asyncio.Queue()

        async def pump(stream: AsyncIterator[Any]) -> None:
            try:
                async for item in stream:
                    merged.put_nowait(item)
                merged.put_nowait(None)
            except Exception as error:
                merged.put_nowait(error)

        merged.put_nowait(first)
        pumps = [asyncio.create_task(pump(stream)) for stream in streams]
        try:
            left = len(pumps)
            while left:
                item = await merged.get()
                if isinstance(item, Reply):
                    replies.append(item)
                elif isinstance(item, Exception):
                    error = item if isinstance(item, ApiError) else self._error(item, None)
                    yield _event(error.body())
                    return
                elif item is None:
                    left -= 1
                else:
                    yield _event(head.of("chat.completion.chunk", [item]))
            if usage:
                yield _event(head.of("chat.completion.chunk", [], _usage(replies)))
            yield "data: [DONE]\n\n"
        finally:
            watch.cancel()
            _cancel(jobs)
            for task in pumps:
                task.cancel()

    def _error(self, error: Exception, medium: Medium | None) -> ApiError:
        try:
            with named(medium.name, medium.path) if medium else contextlib.nullcontext():
                raise error
        except Exception as renamed:
            told = as_api_error(renamed)
        if told.status == 500:
            logging.error("a request failed", exc_info=error)
        return told


class _Head:
    """What all pieces of one response have."""

    def __init__(self, model: str, name: str, created: int):
        self.fields = {"id": name, "created": created, "model": model, "system_fingerprint": None}

    def of(self, kind: str, choices: list[dict], usage: dict[str, int] | None = None) -> dict[str, Any]:
        """Returns a piece with these choices."""
        piece = self.fields | {"object": kind, "choices": choices}
        return piece | ({"usage": usage} if usage else {})


def _numbered(ask: Ask, body: ChatRequest, number: int) -> Ask:
    """Returns what the choice of this number asks: with random numbers of its own."""
    seed = secrets.randbits(62) if body.seed is None else body.seed + number
    return dataclasses.replace(ask, choice=dataclasses.replace(ask.choice, seed=seed % 2**62))


async def _events_of(job: Job) -> AsyncIterator[tuple]:
    while True:
        event = await job.events.get()
        yield event
        if event[0] in ("reply", "error"):
            return


async def _watch(request: Request, jobs: list[Job]) -> None:
    """Ends the jobs when their client has gone."""
    while not await request.is_disconnected():
        await asyncio.sleep(_LOOK_S)
    _cancel(jobs)


def _cancel(jobs: list[Job]) -> None:
    for job in jobs:
        job.gone.set()


def _usage(replies: Any) -> dict[str, int]:
    replies = list(replies)
    prompt, made = max(r.prompt_tokens for r in replies), sum(r.tokens for r in replies)
    return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}


def _event(values: dict[str, Any]) -> str:
    return f"data: {json.dumps(values, ensure_ascii=False)}\n\n"
