"""Update rows: a prompt once and its responses behind it, `[P; R1..RG]`.

Each response is a continuation that reads the prompt and itself, at the positions that it would have alone,
so a row equals its responses behind a copy of the prompt each. Several groups may share a row, a segment
each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from o3jax.errors import UserError
from o3jax.models.batch import Batch, Features, Patches, TextRow, map_arrays, put, take
from o3jax.models.config import Config


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class UpdateBatch:
    """Update rows, and what the objective reads beside them; axes in front as in a `Batch`."""

    inputs: Batch
    response_ids: Int[Array, "*B N T"]  # the tokens of each response, its end included
    # The position of the row that predicts each; for every first token that is the last one of the prompt.
    response_index: Int[Array, "*B N T"]
    response_mask: Bool[Array, "*B N T"]  # where there is a token; where cleared, it does not count
    sequence: Int[Array, "*B N 2"]  # which (prompt, sample) it is; -1 where there is none
    advantages: Float[Array, "*B N"] | None = None
    logp_old: Float[Array, "*B N T"] | None = None
    logp_ref: Float[Array, "*B N T"] | None = None

    def by_sequence(self, values: np.ndarray) -> np.ndarray:
        """Returns `values` [prompts, samples, ...] at the rows' sequences, [B, N, ...]; 0 where none is."""
        prompt, sample = np.moveaxis(self.sequence, -1, 0)
        placed = np.asarray(values)[prompt, sample]
        placed[prompt < 0] = 0
        return placed

    def places(self) -> tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
        """Returns where the sequences are: (row, number) of each in the batch, and its (prompt, sample)."""
        here = np.nonzero(self.sequence[..., 0] >= 0)
        return here, tuple(self.sequence[here].T)


@dataclasses.dataclass(frozen=True)
class UpdateShape:
    """What update rows are padded to."""

    length: int  # S: tokens of a row
    frame_pairs: int  # frame pairs of a row; 0 for prompts without pixels
    patches: int  # of a frame pair
    sequences: int  # N: responses of a row
    response: int  # T: tokens of a response


@dataclasses.dataclass(frozen=True)
class _Unit:
    """What stays together in a row: a prompt and some of its responses."""

    prompt: int
    samples: Sequence[int]
    slots: Int[np.ndarray, " P"]  # of the prompt's tokens, in its collated row
    frame_pairs: int  # its frame pairs
    responses: Sequence[Int[np.ndarray, " R"]]

    @property
    def cost(self) -> Int[np.ndarray, "3"]:
        """Tokens, frame pairs and responses."""
        return np.array(
            [len(self.slots) + sum(map(len, self.responses)), self.frame_pairs, len(self.samples)]
        )


def pack_groups(
    prompts: Batch,
    responses: Sequence[Sequence[Sequence[int]]],
    config: Config,
    shape: UpdateShape,
    *,
    rows: int | None = None,
    repeated: bool = False,
) -> UpdateBatch:
    """Returns the update rows of some prompts and the responses to each, in numpy.

    Groups go, in their order, to the first row that has room.

    Args:
        prompts: what `o3jax.inputs.collate` returns, padded on either side. With features in place of their
            patches, so are the rows. Of the dense stream and the questions rows have nothing.
        responses: the tokens of each prompt's samples.
        config: the model's configuration.
        shape: what rows are padded to.
        rows: how many to return, empty ones behind; None for as many as are needed.
        repeated: every response gets a copy of its prompt: the same update, at its full price.

    Raises:
        UserError: if a group does not fit a row, or the groups do not fit the rows.
    """
    units = _units(prompts, responses, shape, repeated)
    capacity = np.array([shape.length, shape.frame_pairs, shape.sequences])
    packed: list[list[_Unit]] = []
    free: list[np.ndarray] = []
    for unit in units:
        at = next((i for i, left in enumerate(free) if (unit.cost <= left).all()), None)
        if at is None:
            at = len(packed)
            packed.append([])
            free.append(capacity)
        packed[at].append(unit)
        free[at] = free[at] - unit.cost
    if rows is not None and len(packed) > rows:
        raise UserError(
            f"{len(units)} groups need {len(packed)} update rows, more than the {rows} that were asked for"
        )
    merge_unit = config.vision.merge_unit
    batch = _empty(prompts, shape, len(packed) if rows is None else rows, merge_unit)
    for row, together in enumerate(packed):
        _fill(take(batch, row), together, prompts, merge_unit)
    return batch


def _units(
    prompts: Batch, responses: Sequence[Sequence[Sequence[int]]], shape: UpdateShape, repeated: bool
) -> list[_Unit]:
    """Returns what is to be packed, each of which fits a row."""
    count = len(prompts.text.input_ids)
    if len(responses) != count:
        raise UserError(f"there are {count} prompts but responses to {len(responses)}: pass a list for each")
    units = []
    for prompt, texts in enumerate(responses):
        slots = np.flatnonzero(prompts.text.segment_ids[prompt])
        lengths = prompts.frames.length[prompt] if prompts.frames else np.zeros(1, np.int32)
        frame_pairs = int((lengths > 0).sum())
        arrays = [np.asarray(text, np.int32) for text in texts]
        samples = range(len(arrays))
        for some in [[s] for s in samples] if repeated else [samples]:
            unit = _Unit(prompt, some, slots, frame_pairs, [arrays[s] for s in some])
            tokens, _, sequences = unit.cost
            for need, has, what, field in (
                (tokens, shape.length, "tokens", "length"),
                (frame_pairs, shape.frame_pairs, "frame pairs", "frame_pairs"),
                (lengths.max(), shape.patches, "patches in a frame pair", "patches"),
                (sequences, shape.sequences, "responses", "sequences"),
                (max(map(len, arrays), default=0), shape.response, "tokens in a response", "response"),
            ):
                if need > has:
                    raise UserError(
                        f"prompt {prompt} with its responses has {need} {what}, more than the {has} of an "
                        f"update row: raise `{field}` of the update's shape, or ask for less"
                    )
            units.append(unit)
    return units


def _empty(prompts: Batch, shape: UpdateShape, rows: int, merge_unit: int) -> UpdateBatch:
    """Returns rows of padding."""

    def full(*sizes: int, value: int = 0, dtype: type = np.int32) -> np.ndarray:
        return np.full((rows, *sizes), value, dtype)

    def frames(like: Patches | Features | None, width: int) -> Patches | Features | None:
        def one(array: np.ndarray) -> np.ndarray:
            sizes = (shape.frame_pairs, width)[: array.ndim - 1] + array.shape[3:]
            return full(*sizes, dtype=array.dtype)

        return map_arrays(one, like)

    text = TextRow(
        input_ids=full(shape.length),
        segment_ids=full(shape.length),
        positions=full(3, shape.length),
        visual_index=full(shape.length, value=-1),
        continuation_ids=full(shape.length),
    )
    patches = None if prompts.features else frames(prompts.patches, shape.patches)
    features = frames(prompts.features, shape.patches // merge_unit)
    return UpdateBatch(
        Batch(text, patches=patches, features=features),
        response_ids=full(shape.sequences, shape.response),
        response_index=full(shape.sequences, shape.response),
        response_mask=full(shape.sequences, shape.response, dtype=bool),
        sequence=full(shape.sequences, 2, value=-1),
    )


def _fill(row: UpdateBatch, units: Sequence[_Unit], prompts: Batch, merge_unit: int) -> None:
    """Writes units into a row of padding, one after the other."""
    at = frame_pairs = number = 0
    text = row.inputs.text
    for segment, unit in enumerate(units, start=1):
        begin, last = at, at + len(unit.slots) - 1
        source = take(prompts, unit.prompt)
        here = slice(begin, last + 1)
        text.input_ids[here] = source.text.input_ids[unit.slots]
        text.positions[:, here] = source.text.positions[:, unit.slots]
        if unit.frame_pairs:
            frames, into = source.frames, row.inputs.frames
            old, new = frames.values.shape[1], into.values.shape[1]
            _copy(frames, into, unit.frame_pairs, frame_pairs, min(old, new))
            # A visual token's number tells its frame pair and its place in it; both may have changed.
            if isinstance(frames, Patches):
                old, new = old // merge_unit, new // merge_unit
            index = source.text.visual_index[unit.slots]
            moved = (index // old + frame_pairs) * new + index % old
            text.visual_index[here] = np.where(index < 0, -1, moved)
        at = last + 1
        for continuation, (sample, tokens) in enumerate(
            zip(unit.samples, unit.responses, strict=True), start=1
        ):
            size = len(tokens)
            there = slice(at, at + size)
            text.input_ids[there] = row.response_ids[number, :size] = tokens
            text.continuation_ids[there] = continuation
            text.positions[:, there] = source.text.next_position + np.arange(size)
            row.response_index[number, :size] = [last, *range(at, at + size - 1)][:size]
            row.response_mask[number, :size] = True
            row.sequence[number] = unit.prompt, sample
            at, number = at + size, number + 1
        text.segment_ids[begin:at] = segment
        frame_pairs += unit.frame_pairs


def _copy(source: Patches | Features, into: Patches | Features, count: int, at: int, width: int) -> None:
    """Writes the first `count` frame pairs behind `at` others, `width` patches or tokens of each."""

    def part(array: np.ndarray, start: int) -> np.ndarray:
        return array[start : start + count, :width] if array.ndim > 1 else array[start : start + count]

    put(map_arrays(lambda a: part(a, at), into), ..., map_arrays(lambda a: part(a, 0), source))
