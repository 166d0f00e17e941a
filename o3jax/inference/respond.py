"""Questions about videos -> generated texts, with what the evidence modules say of each mention.

The pixels are read once: the language model and the evidence modules share what `encode_visuals` returns.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, UInt8

from o3jax.generate.sampler import Ending, Generated, greedy
from o3jax.grounding import Grounding, Interval
from o3jax.inference.locate import (
    QUERIES,
    DecoderEstimate,
    ReadFrames,
    frames_nearest,
    locate,
    proposals,
)
from o3jax.inference.matching import Searched, asked, match
from o3jax.inputs.collate import alike, bucket, coarse, collate
from o3jax.inputs.dense import FramesAt, SingleFrames, dense_stream, visual_places
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, stack
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures
from o3jax.notes import Note
from o3jax.prompts.clock import Clock
from o3jax.prompts.feedback import with_proposals
from o3jax.prompts.mentions import mention_positions
from o3jax.searched import Search
from o3jax.video import Clip

_APART_S = 1000.0  # between parts of a video, for the temporal encoder: beyond its window
_PROMPTS = coarse(512, 1536)  # tokens that prompts are padded to, so that all lengths share their programs


@dataclasses.dataclass(frozen=True)
class Request:
    """A question about a video, read and ready."""

    question: str
    prompt: str  # the chat as text, with one video placeholder
    frames: UInt8[np.ndarray, "T H W 3"]  # of the language stream
    metadata: Mapping[str, Any]  # fps and frames_indices, as the processor takes them
    dense_frames: UInt8[np.ndarray, "n h w 3"] | None = None  # of the dense stream, and their seconds
    dense_times: Float[np.ndarray, " n"] | None = None
    frames_at: FramesAt | None = None  # where boxes are read from the frame pointed at
    clock: Clock | None = None  # of the model, where that is not the video's; all times here are the video's
    search: Search | None = None  # how these frames were found in a long video
    # Frames of each stream that there is room for at least, so that a longer one's programs serve this one.
    room: tuple[int, ...] = ()
    # Reads what else of it is relevant, when what is at some seconds is not what is asked for; None: nothing
    further: Callable[[Sequence[float]], tuple[Request, Clip] | None] | None = None

    def as_read(self, quoted: Callable[[str], str]) -> Request:
        """Returns the request with the model's times in place of the video's.

        Args:
            quoted: how a question stands in a prompt.
        """
        clock, seen, ask = self.clock, self.dense_times, self.frames_at
        if clock is None:
            return self
        question = clock.asked(self.question)
        before, _, after = self.prompt.rpartition(quoted(self.question))
        fps, indices = self.metadata["fps"], np.asarray(self.metadata["frames_indices"])
        own, read = clock.to_model(seen), clock.to_model(indices / fps)

        def frames_at(times: Float[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
            frames, found = ask(seen[[np.abs(own - t).argmin() for t in times]])
            return frames, clock.to_model(found)

        return dataclasses.replace(
            self,
            question=question,
            prompt=before + quoted(question) + after,
            metadata={**self.metadata, "frames_indices": np.floor(read * fps + 0.5).astype(int)},
            dense_times=own,
            frames_at=ask and frames_at,
        )


@dataclasses.dataclass(frozen=True)
class Response:
    """What the model says; the fields of the evidence modules are empty without them."""

    tokens: Int[np.ndarray, " new"]
    probabilities: Float[np.ndarray, " new"]  # of each token
    text: str
    estimates: tuple[DecoderEstimate, ...] = ()  # one for each `</obj>` of the text
    proposals: tuple[DecoderEstimate, ...] = ()  # what the text was written from, the best first
    times_s: Float[np.ndarray, " T"] | None = None  # of the dense frame pairs
    relevance: Float[np.ndarray, " T"] | None = None  # of each, a probability
    candidates: tuple[Interval, ...] = ()  # what was searched; nothing means everything
    clock: Clock | None = None  # of the times in the tokens; all else has the video's
    search: Search | None = None  # as in the request
    never: Note | None = None  # why what is asked for is said to appear nowhere

    def of(self, request: Request) -> Response:
        """Returns the response to a request as it was read, with the video's times."""
        clock, found = request.clock, dataclasses.replace(self, clock=request.clock, search=request.search)
        if clock is None:
            return found

        def moved(one: DecoderEstimate) -> DecoderEstimate:
            start, end = map(clock.to_video, one.interval)
            return dataclasses.replace(one, time_s=clock.to_video(one.time_s), interval=(start, end))

        return dataclasses.replace(
            found,
            text=clock.said(self.text)[0],
            estimates=tuple(map(moved, self.estimates)),
            proposals=tuple(map(moved, self.proposals)),
            times_s=None if self.times_s is None else clock.to_video(self.times_s),
            candidates=tuple((clock.to_video(a), clock.to_video(b)) for a, b in self.candidates),
        )

    def curve(self) -> tuple[tuple[float, float], ...]:
        """Returns (seconds, probability of being evidence) over the video, rounded."""
        if self.relevance is None:
            return ()
        pairs = zip(self.times_s.tolist(), self.relevance.tolist(), strict=True)
        return tuple((round(t, 3), round(p, 4)) for t, p in pairs)


def encode_visuals(model: Qwen3VL, batch: Batch) -> VisualFeatures:
    """Returns what the model makes of a batch's pixels, whose rows hold one video each."""
    return _encode_visuals(model, dataclasses.replace(batch, text=None, questions=None))


@jax.jit
def _encode_visuals(model: Qwen3VL, batch: Batch) -> VisualFeatures:
    return model.encode_visuals(batch)


@dataclasses.dataclass(frozen=True)
class Steps:
    """How the parts of an answer are done; who serves many requests at once lets them share these."""

    encode: Callable[[Qwen3VL, Batch], VisualFeatures] = dataclasses.field(
        default_factory=lambda: encode_visuals
    )
    generate: Callable[..., Generated] = dataclasses.field(default_factory=lambda: greedy)


def respond(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    ending: Ending,
    box_step: int = 1,
    steps: Steps | None = None,
) -> list[Response]:
    """Returns the greedy response to each request; sizes are padded, so that few programs serve all.

    Videos of like size are batches; others run one batch after the other, so that a small one takes no more
    memory beside a large one.

    Args:
        box_step: grid of the boxes in proposals that the language model reads, see `coords.per_mille`.
        steps: how its parts are done.

    Raises:
        UserError: if a request does not fit the largest program.
    """
    responses: dict[int, Response] = {}
    for numbers in alike([size_of(request) for request in requests]):
        some = sorted(numbers)
        mine = [requests[number] for number in some]
        said = _respond(model, processor, mine, ending, box_step, steps or Steps())
        responses |= zip(some, said, strict=True)
    return [responses[number] for number in range(len(requests))]


def size_of(request: Request) -> list[tuple[int, int]]:
    """Returns how many frames each stream of a request has, or has room for, and of how many pixels."""
    streams = [request.frames] + ([] if request.dense_frames is None else [request.dense_frames])
    counts = itertools.zip_longest(map(len, streams), request.room[: len(streams)], fillvalue=0)
    return [
        (max(count), frames.shape[1] * frames.shape[2]) for count, frames in zip(counts, streams, strict=True)
    ]


def _respond(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    ending: Ending,
    box_step: int,
    steps: Steps,
) -> list[Response]:
    """Returns the response to each request, all as one batch."""
    videos, metadata = [r.frames for r in requests], [r.metadata for r in requests]
    texts = [r.prompt for r in requests]
    inputs = processor(text=texts, videos=videos, video_metadata=metadata, padding_side="right")
    frames = max(size_of(request)[0][0] for request in requests)
    batch = pad_inputs(inputs, model, frames)
    if model.evidence is not None:
        batch = add_evidence_inputs(model, processor, requests, inputs["video_grid_thw"], batch)
    visuals = steps.encode(model, batch)
    found, read_frames, proposed = None, None, [[]] * len(requests)
    if model.evidence is not None:
        found = match(model, batch, visuals)
        read_frames = frame_reader(model, processor, requests, inputs["video_grid_thw"], batch)
    if found and model.config.evidence.feedback == "prompt":
        proposed = proposals(model, found, visuals, read_frames)
        texts = [
            prompt_with_proposals(processor, r, mine, box_step)
            for r, mine in zip(requests, proposed, strict=True)
        ]
        inputs = processor(text=texts, videos=videos, video_metadata=metadata, padding_side="right")
        batch = dataclasses.replace(batch, text=pad_inputs(inputs, model, frames).text)
    out = steps.generate(model, batch, ending, visuals)
    responses = [
        Response(tokens, probabilities, processor.decode(tokens))
        for tokens, probabilities in generated_rows(out)
    ]
    if found is None:
        return responses
    mentions = [mention_positions(processor.tokenizer, r.tokens) for r in responses]
    estimates = _estimates(model, mentions, np.asarray(out.states), visuals, found, read_frames)
    valid, times = batch.dense.length > 0, batch.dense.times
    return [
        dataclasses.replace(
            response,
            estimates=estimates[row],
            proposals=tuple(proposed[row]),
            times_s=times[row][valid[row]],
            relevance=found.relevance[row][valid[row]],
            candidates=tuple(found.intervals[row]),
        )
        for row, response in enumerate(responses)
    ]


def pad_inputs(inputs: Mapping[str, np.ndarray], model: Qwen3VL, frames: int = 0) -> Batch:
    """Returns the batch of a processor's output, padded to sizes that recur.

    Args:
        frames: of a row's video that there is room for at least.
    """
    exact = collate(inputs, model.config)
    sizes = {"length": bucket(exact.text.input_ids.shape[1], _PROMPTS)}
    if exact.patches is not None:
        frame_pairs, patches = exact.patches.values.shape[1:3]
        least = -(-frames // model.config.vision.temporal_patch_size)
        sizes |= {"frame_pairs": bucket(max(frame_pairs, least)), "patches": patches}
    return collate(inputs, model.config, **sizes)


def generated_rows(out: Generated) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns each row's tokens and their probabilities."""
    tokens, logprobs, lengths = (np.asarray(x) for x in (out.tokens, out.logprobs, out.length))
    return [(t[:n], np.exp(p[:n])) for t, p, n in zip(tokens, logprobs, lengths, strict=True)]


def add_evidence_inputs(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    grids: Int[np.ndarray, "B 3"],
    batch: Batch,
) -> Batch:
    """Returns the batch with what the evidence modules read beside the language stream."""
    c, video = model.config.vision, processor.video_config
    counts, areas = zip(*(size_of(request)[1] for request in requests), strict=True)
    pairs, area = -(-max(counts) // video.temporal_patch_size), max(areas)
    sizes = {"frame_pairs": bucket(pairs), "patches": area // video.patch_size**2}
    shown = dict(zip(sizes, batch.patches.values.shape[1:3], strict=True))
    dense, places = [], []
    for request, grid in zip(requests, grids.tolist(), strict=True):
        times = processor.pair_times(
            [i / request.metadata["fps"] for i in request.metadata["frames_indices"]]
        )
        stream = dense_stream(request.dense_frames, request.dense_times, video, c, **sizes)
        if any(r.clock for r in requests):  # parts of a video do not read each other
            own = stream.times
            apart = own if request.clock is None else request.clock.apart(own, _APART_S)
            stream = dataclasses.replace(stream, clock=apart)
        dense.append(stream)
        places.append(visual_places(times, tuple(grid), c.spatial_merge_size, **shown))
    questions = asked(processor, [r.question for r in requests])
    return dataclasses.replace(batch, dense=stack(dense), places=stack(places), questions=questions)


def frame_reader(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    grids: Int[np.ndarray, "B 3"],
    batch: Batch,
) -> ReadFrames | None:
    """Returns what reads frames of the requests' videos; None where boxes come from the language stream."""
    if model.config.evidence.box_frames != "pointed":
        return None
    patch = processor.video_config.patch_size
    sources = [
        SingleFrames(r.dense_times, (h * patch, w * patch), r.frames_at)
        for r, (_, h, w) in zip(requests, grids.tolist(), strict=True)
    ]
    return functools.partial(frames_nearest, processor, model, sources, batch.patches.values.shape[2])


def prompt_with_proposals(
    processor: Processor, request: Request, found: Sequence[Grounding], box_step: int
) -> str:
    """Returns the prompt with the proposals after its question."""
    question = processor.tokenizer.quoted(request.question)
    before, _, after = request.prompt.rpartition(question)
    return before + with_proposals(question, found, box_step) + after


def _estimates(
    model: Qwen3VL,
    mentions: Sequence[Sequence[int]],
    states: Float[np.ndarray, "B new E"],
    visuals: VisualFeatures,
    found: Searched,
    read_frames: ReadFrames | None,
) -> list[tuple[DecoderEstimate, ...]]:
    """Returns an estimate for each mention of each response, from the states at its tokens."""
    size = bucket(max(map(len, mentions)), QUERIES)
    valid = np.arange(size) < np.array([len(mine) for mine in mentions])[:, None]
    chosen = np.zeros((*valid.shape, states.shape[-1]), states.dtype)
    for row, mine in enumerate(mentions):
        chosen[row, : len(mine)] = states[row, mine]
    there = locate(model, visuals, found.candidates, read_frames, states=chosen, valid=valid)
    return [tuple(there.estimate(row, m) for m in range(len(mine))) for row, mine in enumerate(mentions)]
