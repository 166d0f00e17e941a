"""Questions about videos -> generated texts, with what the evidence modules say of each mention.

The pixels are read once: the language model and the evidence modules share what `encode_visuals` returns.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int, UInt8

from o3jax.generate.sampler import Generated, greedy
from o3jax.grounding import Grounding, Interval
from o3jax.inference.candidates import candidate_intervals
from o3jax.inputs.collate import bucket, collate
from o3jax.inputs.dense import FramesAt, Source, dense_stream, interval_mask, pointed_frames, visual_places
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, PointedFrames, Questions, stack
from o3jax.models.evidence import Estimate
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures, mention_states
from o3jax.prompts.feedback import with_proposals
from o3jax.prompts.mentions import mention_positions


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderEstimate(Grounding):
    """What the evidence decoder says of one mention; it has a box, and no name."""

    spread_s: float  # standard deviation of the time


@dataclasses.dataclass(frozen=True)
class Response:
    """What the model says; the fields of the evidence modules are empty without them."""

    tokens: Int[np.ndarray, " new"]
    probabilities: Float[np.ndarray, " new"]  # of each token
    text: str
    estimates: tuple[DecoderEstimate, ...] = ()  # one for each `</obj>` of the text
    times_s: Float[np.ndarray, " T"] | None = None  # of the dense frame pairs
    relevance: Float[np.ndarray, " T"] | None = None  # of each, a probability
    candidates: tuple[Interval, ...] = ()  # what was searched; nothing means everything


@jax.jit
def encode_visuals(model: Qwen3VL, batch: Batch) -> VisualFeatures:
    """Returns what the model makes of a batch's pixels."""
    return model.encode_visuals(batch)


@jax.jit
def _add_frames(model: Qwen3VL, visuals: VisualFeatures, frames: PointedFrames) -> VisualFeatures:
    return model.add_frames(visuals, frames)


@jax.jit
def _relevance(model: Qwen3VL, questions: Questions, visuals: VisualFeatures) -> Float[Array, "B T"]:
    return jax.nn.sigmoid(model.relevance(questions, visuals)[1])


@jax.jit
def _propose(
    model: Qwen3VL, questions: Questions, visuals: VisualFeatures, candidates: Bool[Array, "B T"]
) -> Estimate:
    return model.propose(model.relevance(questions, visuals)[0], visuals, candidates)


@jax.jit
def estimate(
    model: Qwen3VL,
    states: Float[Array, "B new D"],
    mention_index: Int[Array, "B Q M"],
    visuals: VisualFeatures,
    candidates: Bool[Array, "R T"],
) -> Estimate:
    """Returns when and where the mentions [R, M] of Q texts about each video are; R is B times Q."""
    there = rearrange(mention_index >= 0, "b q m -> (b q) m")
    return model.estimate(mention_states(states, mention_index), there, visuals, candidates)


def respond(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    box_step: int = 1,
) -> list[Response]:
    """Returns the greedy response to each request; sizes are padded, so that few programs serve all.

    Args:
        box_step: grid of the boxes in proposals that the language model reads, see `coords.per_mille`.

    Raises:
        UserError: if a request does not fit the largest program.
    """
    videos, metadata = [r.frames for r in requests], [r.metadata for r in requests]
    texts = [r.prompt for r in requests]
    inputs = processor(text=texts, videos=videos, video_metadata=metadata, padding_side="right")
    batch = pad_inputs(inputs, model)
    if model.evidence is not None:
        batch = _with_evidence(model, processor, requests, inputs["video_grid_thw"], batch)
    visuals = encode_visuals(model, batch)
    searched = None if model.evidence is None else search(model, batch, visuals)
    add_frames = None
    if searched and model.config.evidence.box_frames == "pointed":
        patch = processor.video_config.patch_size
        sources = [
            Source(r.dense_times, (h * patch, w * patch), r.frames_at)
            for r, (_, h, w) in zip(requests, inputs["video_grid_thw"].tolist(), strict=True)
        ]
        add_frames = functools.partial(add_frames_at, model, processor, visuals, sources)
    if searched and model.config.evidence.feedback == "prompt":
        found = proposals(model, batch, visuals, searched, add_frames)
        texts = [_with_proposals(r, mine, box_step) for r, mine in zip(requests, found, strict=True)]
        inputs = processor(text=texts, videos=videos, video_metadata=metadata, padding_side="right")
        again = pad_inputs(inputs, model)
        batch = dataclasses.replace(batch, text=again.text, patches=again.patches)
    out = greedy(model, batch, max_new_tokens=max_new_tokens, eos_ids=eos_ids, pad_id=pad_id, visuals=visuals)
    responses = [
        Response(tokens, probabilities, processor.decode(tokens)) for tokens, probabilities in _rows(out)
    ]
    return (
        _grounded(model, processor, responses, out, batch, visuals, searched, add_frames)
        if searched
        else responses
    )


def pad_inputs(inputs: Mapping[str, np.ndarray], model: Qwen3VL) -> Batch:
    """Returns the batch of a processor's output, padded to sizes that recur."""
    exact = collate(inputs, model.config)
    sizes = {"length": bucket(exact.text.input_ids.shape[1])}
    if exact.patches is not None:
        frame_pairs, patches = exact.patches.values.shape[1:3]
        sizes |= {"frame_pairs": bucket(frame_pairs), "patches": patches}
    return collate(inputs, model.config, **sizes)


def _rows(out: Generated) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns each row's tokens and their probabilities."""
    tokens, logprobs, lengths = (np.asarray(x) for x in (out.tokens, out.logprobs, out.length))
    return [(t[:n], np.exp(p[:n])) for t, p, n in zip(tokens, logprobs, lengths, strict=True)]


def _with_evidence(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    grids: Int[np.ndarray, "B 3"],
    batch: Batch,
) -> Batch:
    """Returns the batch with what the evidence modules read beside the language stream."""
    c, video = model.config.vision, processor.video_config
    pairs = -(-max(len(r.dense_frames) for r in requests) // video.temporal_patch_size)
    area = max(r.dense_frames.shape[1] * r.dense_frames.shape[2] for r in requests)
    sizes = {"frame_pairs": bucket(pairs), "patches": area // video.patch_size**2}
    shown = dict(zip(sizes, batch.patches.values.shape[1:3], strict=True))
    asked = [processor.tokenizer(r.question)["input_ids"] for r in requests]
    dense, places = [], []
    for request, grid in zip(requests, grids.tolist(), strict=True):
        times = processor.pair_times(
            [i / request.metadata["fps"] for i in request.metadata["frames_indices"]]
        )
        dense.append(dense_stream(request.dense_frames, request.dense_times, video, c, **sizes))
        places.append(visual_places(times, tuple(grid), c.spatial_merge_size, **shown))
    width = bucket(max(map(len, asked)))
    questions = Questions(np.array([[ids + [-1] * (width - len(ids))] for ids in asked], np.int32))
    return dataclasses.replace(batch, dense=stack(dense), places=stack(places), questions=questions)


class Searched(NamedTuple):
    """Relevance over time, the candidate intervals cut from it, and the pairs inside them."""

    relevance: Float[np.ndarray, "B T"]
    intervals: list[list[Interval]]
    candidates: Bool[np.ndarray, "B T"]


def search(model: Qwen3VL, batch: Batch, visuals: VisualFeatures) -> Searched:
    """Returns where the evidence of each question is looked for."""
    relevance = np.asarray(_relevance(model, batch.questions, visuals))
    valid, times = batch.dense.length > 0, batch.dense.times
    found = [candidate_intervals(r[v], t[v]) for r, v, t in zip(relevance, valid, times, strict=True)]
    inside = [interval_mask(f, t) for f, t in zip(found, times, strict=True)]
    return Searched(relevance, found, np.stack(inside))


# Times of each video -> what was seen, with the frames at these times to read boxes from.
AddFrames = Callable[[Sequence[Float[np.ndarray, " m"]]], VisualFeatures]


def add_frames_at(
    model: Qwen3VL,
    processor: Processor,
    visuals: VisualFeatures,
    sources: Sequence[Source | None],
    times: Sequence[Float[np.ndarray, " m"]],
) -> VisualFeatures:
    """Returns what was seen, and of each video the frames nearest to some times, to read boxes from.

    Args:
        sources: of each row of `visuals`; None for what has no frames but those that were seen.
        times: of each row, seconds.
    """
    c, video = model.config.vision, processor.video_config
    wanted = [
        np.unique([] if one is None else [one.times_s[np.abs(one.times_s - t).argmin()] for t in mine])
        for one, mine in zip(sources, times, strict=True)
    ]
    if not any(map(len, wanted)):
        return visuals
    sizes = {
        "frame_pairs": bucket(max(map(len, wanted))),
        "patches": visuals.visual.centres.shape[2] * c.merge_unit,
    }
    rows = []
    for one, at in zip(sources, wanted, strict=True):
        size = one.size if one else (video.factor, video.factor)
        frames = np.zeros((0, *size, 3), np.uint8)
        if len(at):
            frames, at = one.frames_at(at)
        rows.append(pointed_frames(frames, at, size, video, c, **sizes))
    return _add_frames(model, visuals, stack(rows))


def proposals(
    model: Qwen3VL,
    batch: Batch,
    visuals: VisualFeatures,
    searched: Searched,
    add_frames: AddFrames | None = None,
) -> list[list[Grounding]]:
    """Returns where each question alone points: the best proposal, and others that are likely."""
    guess = _propose(model, batch.questions, visuals, searched.candidates)
    if add_frames is not None:
        guess = _propose(model, batch.questions, add_frames(np.asarray(guess.time_s)), searched.candidates)
    guess = jax.tree.map(np.asarray, guess)
    found = []
    for row in range(len(guess.confidence)):
        order = np.argsort(-guess.confidence[row])
        chosen = [m for rank, m in enumerate(order) if not rank or guess.confidence[row, m] > 0]
        found.append(
            [
                Grounding(
                    time_s=float(guess.time_s[row, m]),
                    interval=tuple(guess.interval[row, m].tolist()),
                    boxes=(tuple(guess.box[row, m].tolist()),),
                )
                for m in chosen
            ]
        )
    return found


def _with_proposals(request: Request, found: Sequence[Grounding], box_step: int) -> str:
    """Returns the prompt with the proposals after its question."""
    before, _, after = request.prompt.rpartition(request.question)
    return before + with_proposals(request.question, found, box_step) + after


def _grounded(
    model: Qwen3VL,
    processor: Processor,
    responses: Sequence[Response],
    out: Generated,
    batch: Batch,
    visuals: VisualFeatures,
    searched: Searched,
    add_frames: AddFrames | None,
) -> list[Response]:
    """Returns the responses with relevance over time, and an estimate for each of their mentions."""
    relevance, found, candidates = searched
    valid, times = batch.dense.length > 0, batch.dense.times
    mentions = [mention_positions(processor.tokenizer, r.tokens) for r in responses]
    index = np.full((len(responses), 1, bucket(max(1, *map(len, mentions)))), -1, np.int32)
    for row, positions in zip(index, mentions, strict=True):
        row[0, : len(positions)] = positions
    guess = estimate(model, out.states, index, visuals, candidates)
    if add_frames is not None:
        there = [times[: len(m)] for times, m in zip(np.asarray(guess.time_s), mentions, strict=True)]
        guess = estimate(model, out.states, index, add_frames(there), candidates)
    found_at = jax.tree.map(np.asarray, guess)
    sure = np.asarray(jax.nn.sigmoid(found_at.confidence))

    def decoded(row: int, m: int) -> DecoderEstimate:
        return DecoderEstimate(
            time_s=float(found_at.time_s[row, m]),
            interval=tuple(found_at.interval[row, m].tolist()),
            boxes=(tuple(found_at.box[row, m].tolist()),),
            confidence=float(sure[row, m]),
            spread_s=float(found_at.spread_s[row, m]),
        )

    return [
        dataclasses.replace(
            response,
            estimates=tuple(decoded(row, m) for m in range(len(mentions[row]))),
            times_s=times[row][valid[row]],
            relevance=relevance[row][valid[row]],
            candidates=tuple(found[row]),
        )
        for row, response in enumerate(responses)
    ]
