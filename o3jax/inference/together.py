"""Several questions about one video, or about a few: each is encoded once, and prompts about it that begin
alike are prefilled once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from o3jax.generate.sampler import Ending
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
    size_of,
)
from o3jax.inputs.collate import alike, bucket, collate, few_sizes
from o3jax.inputs.processor import Processor
from o3jax.models.batch import Batch, Features, Questions, TextRow, take
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures

# Texts that begin otherwise are rows of one batch up to so many slots, if these are not many more than apart.
_MAX_SLOTS, _SPARE = 8192, 1.5


def respond_together(
    model: Qwen3VL,
    processor: Processor,
    requests: Sequence[Request],
    ending: Ending,
    box_step: int = 1,
) -> list[Response]:
    """Returns the greedy response to each request, without estimates.

    What is about the same frames (one array) is encoded once. Videos of like size are batches. The texts are
    those of `respond`, as far as sums in another order do not tip the balance between two tokens.

    Args:
        ending, box_step: as for `respond`.

    Raises:
        UserError: if a request does not fit the largest program.
    """
    videos = list({id(request.frames): request for request in requests}.values())
    numbers = {id(video.frames): number for number, video in enumerate(videos)}
    owners = [numbers[id(request.frames)] for request in requests]
    responses: dict[int, Response] = {}
    for group in alike([size_of(video) for video in videos]):
        some = sorted(group)
        mine = [number for number, owner in enumerate(owners) if owner in some]
        seen = _see(model, processor, [videos[number] for number in some])
        about = [some.index(owners[number]) for number in mine]
        texts = _texts(model, processor, seen, [requests[number] for number in mine], about, box_step)
        rows = _rows(processor, seen, texts, about)
        said = _continued(model, processor, seen, rows, about, ending)
        responses |= zip(mine, said, strict=True)
    return [responses[number] for number in range(len(requests))]


class _Seen(NamedTuple):
    """Videos as they are encoded: together, and the processor's output for each."""

    videos: Sequence[Request]
    inputs: list[Mapping[str, np.ndarray]]
    batch: Batch
    visuals: VisualFeatures

    def alone(self, number: int) -> _Seen:
        """Returns one of the videos."""
        if len(self.videos) == 1:
            return self
        here, all_of = slice(number, number + 1), self.visuals
        dense, visual = jax.tree.map(lambda x: x[here], (all_of.dense, all_of.visual))
        visuals = VisualFeatures(all_of.tokens[here], all_of.taps[:, here], dense, visual)
        return _Seen(self.videos[here], self.inputs[here], take(self.batch, here), visuals)


def _see(model: Qwen3VL, processor: Processor, videos: Sequence[Request]) -> _Seen:
    def read(some: Sequence[Request]) -> Mapping[str, np.ndarray]:
        return processor(
            text=[video.prompt for video in some],
            videos=[video.frames for video in some],
            video_metadata=[video.metadata for video in some],
            padding_side="right",
        )

    together = read(videos)
    inputs = [together] if len(videos) == 1 else [read([video]) for video in videos]
    batch = pad_inputs(together, model)
    if model.evidence is not None:
        batch = add_evidence_inputs(model, processor, videos, together["video_grid_thw"], batch)
    return _Seen(videos, inputs, batch, encode_visuals(model, batch))


def _texts(
    model: Qwen3VL,
    processor: Processor,
    seen: _Seen,
    requests: Sequence[Request],
    about: Sequence[int],
    box_step: int,
) -> list[str]:
    """Returns the prompts, with what the evidence modules propose where the model reads that."""
    texts = [request.prompt for request in requests]
    if model.evidence is None or model.config.evidence.feedback != "prompt":
        return texts
    for number in range(len(seen.videos)):
        one, mine = seen.alone(number), [at for at, video in enumerate(about) if video == number]
        asked = [requests[at] for at in mine]
        found = match(model, asked_of(processor, asked, one.batch), one.visuals)
        read_frames = frame_reader(model, processor, one.videos, one.inputs[0]["video_grid_thw"], one.batch)
        proposed = proposals(model, found, one.visuals, read_frames)
        for at, request, own in zip(mine, asked, proposed, strict=True):
            texts[at] = prompt_with_proposals(processor, request, own, box_step)
    return texts


def _rows(
    processor: Processor, seen: _Seen, texts: Sequence[str], about: Sequence[int]
) -> list[Sequence[int]]:
    """Returns the tokens of each text, those of its video among them."""
    media = [processor.read_video(video.frames, video.metadata) for video in seen.videos]
    expanded = processor.expand(texts, videos=[media[video] for video in about])
    return [processor.tokenizer(text)["input_ids"] for text in expanded]


def _continued(
    model: Qwen3VL,
    processor: Processor,
    seen: _Seen,
    rows: Sequence[Sequence[int]],
    about: Sequence[int],
    ending: Ending,
) -> list[Response]:
    """Returns what follows each text, about its video."""
    responses: dict[int, Response] = {}
    patches = seen.batch.patches.values.shape[2]
    parts = [
        _part(numbers, rows, about[numbers[0]], seen.inputs[about[numbers[0]]], model, patches)
        for numbers in _alike(rows, about, model.config.video_token_id)
    ]
    visuals = VisualFeatures(seen.visuals.tokens, seen.visuals.taps, None, None)
    for some in _packed(parts):
        row, ends, positions, prefix = _arranged(some)
        videos = np.array([part.video for part in some], np.int32)
        out = greedy_continuations(
            model, Batch(row), ends, positions, visuals, videos, prefix=prefix, ending=ending
        )
        generated = generated_rows(out)
        for at, part in enumerate(some):
            for place, number in enumerate(part.numbers, at * ends.shape[1]):
                tokens, probabilities = generated[place]
                responses[number] = Response(tokens, probabilities, processor.decode(tokens))
    return [responses[number] for number in range(len(rows))]


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


def _alike(rows: Sequence[Sequence[int]], about: Sequence[int], video_token: int) -> list[list[int]]:
    """Returns the numbers of the texts in groups that are the same up to the end of their video, and about
    one video.

    A text that is so much longer than the others that they would be padded by more than half of what they
    share is in another group.
    """
    groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
    for number, (row, video) in enumerate(zip(rows, about, strict=True)):
        last = max(at for at, token in enumerate(row) if token == video_token)
        beginning = tuple(row[: last + 2])  # with the mark of the end of vision
        groups.setdefault((video, beginning), []).append(number)
    result: list[list[int]] = []
    for (_, beginning), numbers in groups.items():
        result.append([])
        for number in sorted(numbers, key=lambda number: len(rows[number])):
            wasted = sum(len(rows[number]) - len(rows[other]) for other in result[-1])
            if 2 * wasted > len(beginning):
                result.append([])
            result[-1].append(number)
    return result


class _Part(NamedTuple):
    """Texts that begin alike: their numbers, their video, the first of them alone, how many tokens all share,
    and what follows in each."""

    numbers: list[int]
    video: int
    alone: TextRow
    shared: int
    own: list[Sequence[int]]


def _part(
    numbers: list[int],
    rows: Sequence[Sequence[int]],
    video: int,
    inputs: Mapping[str, np.ndarray],
    model: Qwen3VL,
    patches: int,
) -> _Part:
    mine = [rows[number] for number in numbers]
    shortest = min(map(len, mine))
    tokens = enumerate(zip(*mine, strict=False))
    shared = next((at for at, some in tokens if len(set(some)) > 1), shortest)
    shared = min(shared, shortest - 1)  # something must be left to go on from
    ids = np.array([mine[0]], np.int64)
    inputs = {**inputs, "input_ids": ids, "attention_mask": np.ones_like(ids)}
    alone = collate(inputs, model.config, patches=patches).text
    return _Part(numbers, video, alone, shared, [row[shared:] for row in mine])


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
    for part in sorted(parts, key=lambda part: (len(part.own), part.shared)):  # neighbours are of like size
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
