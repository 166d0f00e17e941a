"""Several questions about one video: it is read and encoded once, and prompts that begin alike are prefilled
once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from o3jax.generate.shared import greedy_continuations
from o3jax.inference.locate import proposals
from o3jax.inference.matching import match
from o3jax.inference.respond import (
    Request,
    Response,
    add_evidence_inputs,
    encode_visuals,
    frame_reader,
    generated_rows,
    pad_inputs,
    prompt_with_proposals,
)
from o3jax.inputs.collate import bucket, collate, few_sizes
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, Features, Questions, TextRow
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures

# Texts that begin otherwise are rows of one batch up to so many slots, if these are not many more than apart.
_MAX_SLOTS, _SPARE = 8192, 1.5


def respond_together(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    box_step: int = 1,
    repetition_penalty: float = 1.0,
) -> list[Response]:
    """Returns the greedy response to each request, without estimates; all are about the frames of the first.

    The texts are those of `respond`, as far as sums in another order do not tip the balance between two
    tokens.

    Args:
        requests: they differ in their question and prompt alone.
        box_step, repetition_penalty: as for `respond`.

    Raises:
        UserError: if a request does not fit the largest program.
    """
    first = requests[0]
    inputs = processor(
        text=[first.prompt], videos=[first.frames], video_metadata=[first.metadata], padding_side="right"
    )
    batch, texts = pad_inputs(inputs, model), [r.prompt for r in requests]
    if model.evidence is not None:
        batch = add_evidence_inputs(model, processor, [first], inputs["video_grid_thw"], batch)
    visuals = encode_visuals(model, batch)
    if model.evidence is not None and model.config.evidence.feedback == "prompt":
        found = match(model, asked_of(processor, requests, batch), visuals)
        read_frames = frame_reader(model, processor, [first], inputs["video_grid_thw"], batch)
        proposed = proposals(model, found, visuals, read_frames)
        texts = [
            prompt_with_proposals(processor, r, mine, box_step)
            for r, mine in zip(requests, proposed, strict=True)
        ]
    video = processor.read_video(first.frames, first.metadata)
    rows = [
        processor.tokenizer(text)["input_ids"]
        for text in processor.expand(texts, videos=[video] * len(texts))
    ]
    responses: dict[int, Response] = {}
    parts = [_part(numbers, rows, inputs, model) for numbers in _alike(rows, model.config.video_token_id)]
    for some in _packed(parts):
        row, ends, positions, prefix = _arranged(some)
        out = greedy_continuations(
            model,
            Batch(row),
            ends,
            positions,
            VisualFeatures(visuals.tokens, visuals.taps, None, None),
            prefix=prefix,
            max_new_tokens=max_new_tokens,
            eos_ids=eos_ids,
            pad_id=pad_id,
            penalty=repetition_penalty,
        )
        generated = generated_rows(out)
        for at, part in enumerate(some):
            for place, number in enumerate(part.numbers, at * ends.shape[1]):
                tokens, probabilities = generated[place]
                responses[number] = Response(tokens, probabilities, processor.decode(tokens))
    return [responses[number] for number in range(len(requests))]


def asked_of(processor: Processor, requests: Sequence[Request], batch: Batch) -> Batch:
    """Returns what `match` reads: all questions about the one video, and its times for each."""
    tokenizer = processor.tokenizer
    asked = [tokenizer(tokenizer.quoted(r.question))["input_ids"] for r in requests]
    width, rows = bucket(max(map(len, asked))), len(asked)
    ids = np.array([[ids + [-1] * (width - len(ids)) for ids in asked]], np.int32)
    length = Features(np.zeros(0), np.repeat(batch.dense.length, rows, axis=0))
    times = np.repeat(batch.dense.times, rows, axis=0)
    dense = dataclasses.replace(batch.dense, times=times, patches=None, features=length)
    return dataclasses.replace(batch, questions=Questions(ids), dense=dense)


def _alike(rows: Sequence[Sequence[int]], video_token: int) -> list[list[int]]:
    """Returns the numbers of the texts in groups that are the same up to the end of their video.

    A text that is so much longer than the others that they would be padded by more than half of what they
    share is in another group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, row in enumerate(rows):
        last = max(at for at, token in enumerate(row) if token == video_token)
        groups.setdefault(tuple(row[: last + 2]), []).append(number)  # with the mark of the end of vision
    result: list[list[int]] = []
    for beginning, numbers in groups.items():
        result.append([])
        for number in sorted(numbers, key=lambda number: len(rows[number])):
            wasted = sum(len(rows[number]) - len(rows[other]) for other in result[-1])
            if 2 * wasted > len(beginning):
                result.append([])
            result[-1].append(number)
    return result


class _Part(NamedTuple):
    """Texts that begin alike: their numbers, the first of them alone, how many tokens all share, and what
    follows in each."""

    numbers: list[int]
    alone: TextRow
    shared: int
    own: list[Sequence[int]]


def _part(
    numbers: list[int], rows: Sequence[Sequence[int]], inputs: Mapping[str, np.ndarray], model: Qwen3VL
) -> _Part:
    mine = [rows[number] for number in numbers]
    shortest = min(map(len, mine))
    tokens = enumerate(zip(*mine, strict=False))
    shared = next((at for at, some in tokens if len(set(some)) > 1), shortest)
    shared = min(shared, shortest - 1)  # something must be left to go on from
    ids = np.array([mine[0]], np.int64)
    alone = collate({**inputs, "input_ids": ids, "attention_mask": np.ones_like(ids)}, model.config).text
    return _Part(numbers, alone, shared, [row[shared:] for row in mine])


def _sizes(parts: Sequence[_Part]) -> tuple[int, int, int]:
    """Returns the slots of the prefix, of a continuation, and how many continuations there is room for."""
    most = max(len(part.own) for part in parts)
    longest = max(len(own) for part in parts for own in part.own)
    return few_sizes(max(part.shared for part in parts)), few_sizes(longest), most


def _packed(parts: Sequence[_Part]) -> list[list[_Part]]:
    """Returns the parts that are generated together, as rows of one size: where padding costs little."""

    def slots(some: Sequence[_Part]) -> int:
        prefix, width, count = _sizes(some)
        return len(some) * (prefix + width * count)

    packed: list[list[_Part]] = []
    for part in parts:
        joined = [*packed[-1], part] if packed else [part]
        together = slots(joined)
        if packed and together <= _MAX_SLOTS and together <= _SPARE * sum(slots([one]) for one in joined):
            packed[-1] = joined
        else:
            packed.append([part])
    return packed


def _arranged(
    parts: Sequence[_Part],
) -> tuple[TextRow, Int[np.ndarray, "B G"], Int[np.ndarray, "B G"], int]:
    """Returns rows of prefix and continuations, where each text ends, the position behind it, and the slots
    of the prefix."""
    prefix, width, count = _sizes(parts)
    shape = (len(parts), prefix + width * count)
    text = TextRow(
        input_ids=np.zeros(shape, np.int32),
        segment_ids=np.zeros(shape, np.int32),
        positions=np.zeros((shape[0], 3, shape[1]), np.int32),
        visual_index=np.full(shape, -1, np.int32),
        continuation_ids=np.zeros(shape, np.int32),
    )
    ends, positions = np.zeros((2, len(parts), count), np.int32)
    for row, part in enumerate(parts):
        for name in ("input_ids", "segment_ids", "positions", "visual_index"):
            getattr(text, name)[row, ..., : part.shared] = getattr(part.alone, name)[0, ..., : part.shared]
        start = int(part.alone.positions[0, 0, part.shared])
        for number, own in enumerate(part.own):
            there = slice(at := prefix + number * width, at + len(own))
            text.input_ids[row, there], text.segment_ids[row, there] = own, 1
            text.positions[row, :, there] = start + np.arange(len(own))
            text.continuation_ids[row, there] = number + 1
            ends[row, number], positions[row, number] = there.stop - 1, start + len(own)
    return text, ends, positions, prefix
