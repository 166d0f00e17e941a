"""Update rows: a prompt once and its responses behind it, `[P; R1..RG]`.

Each response is a branch that reads the prompt and itself, at the positions that it would have alone, so
a row equals its responses behind a copy of the prompt each. Several groups may share a row, each a segment.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from o3jax.errors import UserError
from o3jax.models.config import Config
from o3jax.models.qwen3_vl import FEATURE_KEYS, VISION_KEYS


@dataclasses.dataclass(frozen=True)
class UpdateShape:
    """What update rows are padded to."""

    length: int  # S: tokens of a row
    frame_pairs: int  # frame groups of a row; 0 for prompts without pixels
    patches: int  # of a frame group
    sequences: int  # N: responses of a row
    response: int  # T: tokens of a response


@dataclasses.dataclass(frozen=True)
class _Unit:
    """What stays together in a row: a prompt and some of its responses."""

    prompt: int
    samples: Sequence[int]
    slots: Int[np.ndarray, " P"]  # of the prompt's tokens, in its collated row
    frame_pairs: int  # its frame groups
    responses: Sequence[Int[np.ndarray, " R"]]

    @property
    def cost(self) -> Int[np.ndarray, "3"]:
        """Tokens, frame groups and responses."""
        return np.array(
            [len(self.slots) + sum(map(len, self.responses)), self.frame_pairs, len(self.samples)]
        )


def pack_groups(
    prompts: Mapping[str, np.ndarray],
    responses: Sequence[Sequence[Sequence[int]]],
    config: Config,
    shape: UpdateShape,
    *,
    rows: int | None = None,
    repeated: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the update rows of some prompts and the responses to each, as the model's batch.

    Groups go, in their order, to the first row that has room. Beside the batch's arrays there are

        response_ids    int32 [B, N, T]: the tokens of each response, its end included
        response_index  int32 [B, N, T]: the position of the row that predicts each; for every first
                        token that is the last one of the prompt
        response_mask   bool  [B, N, T]: True where there is a token
        sequence        int32 [B, N, 2]: which (prompt, sample) it is; -1 where there is none

    Args:
        prompts: what `o3jax.inputs.collate` returns, padded on either side; `next_position` included. With
            `visual_features` in place of their patches, so are the rows.
        responses: the tokens of each prompt's samples.
        config: the model's configuration.
        shape: what rows are padded to.
        rows: how many to return, empty ones behind; None for as many as are needed.
        repeated: every response gets a copy of its prompt: the same update, at its full price.

    Raises:
        UserError: if a group does not fit a row, or the groups do not fit the rows.
    """
    if config.evidence is not None and config.evidence.inject:
        raise UserError(
            "update rows hold the language stream alone, but evidence.inject feeds the dense one into it: "
            "train a model without injection"
        )
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
        _fill({key: array[row] for key, array in batch.items()}, together, prompts, merge_unit)
    return batch


def by_sequence(batch: Mapping[str, np.ndarray], values: np.ndarray) -> np.ndarray:
    """Returns `values` [prompts, samples, ...] at the rows' sequences, [B, N, ...]; 0 where there is none."""
    prompt, sample = np.moveaxis(batch["sequence"], -1, 0)
    placed = np.asarray(values)[prompt, sample]
    placed[prompt < 0] = 0
    return placed


def _units(
    prompts: Mapping[str, np.ndarray],
    responses: Sequence[Sequence[Sequence[int]]],
    shape: UpdateShape,
    repeated: bool,
) -> list[_Unit]:
    """Returns what is to be packed, each of which fits a row."""
    count = len(prompts["input_ids"])
    if len(responses) != count:
        raise UserError(f"there are {count} prompts but responses to {len(responses)}: pass a list for each")
    units = []
    for prompt, texts in enumerate(responses):
        slots = np.flatnonzero(prompts["segment_ids"][prompt])
        lengths = prompts["patch_length"][prompt] if _visual_keys(prompts) else np.zeros(1, np.int32)
        frame_pairs = int((lengths > 0).sum())
        arrays = [np.asarray(text, np.int32) for text in texts]
        samples = range(len(arrays))
        for some in [[s] for s in samples] if repeated else [samples]:
            unit = _Unit(prompt, some, slots, frame_pairs, [arrays[s] for s in some])
            tokens, _, sequences = unit.cost
            for need, has, what, field in (
                (tokens, shape.length, "tokens", "length"),
                (frame_pairs, shape.frame_pairs, "frame pairs", "frame_pairs"),
                (lengths.max(), shape.patches, "patches in a frame group", "patches"),
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


def _visual_keys(prompts: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """Returns the names of the arrays with what is to be seen, the one with its tokens or patches first."""
    return next((keys for keys in (FEATURE_KEYS, VISION_KEYS) if keys[0] in prompts), ())


def _empty(
    prompts: Mapping[str, np.ndarray], shape: UpdateShape, rows: int, merge_unit: int
) -> dict[str, np.ndarray]:
    """Returns rows of padding."""

    def full(*sizes: int, value: int = 0, dtype: type = np.int32) -> np.ndarray:
        return np.full((rows, *sizes), value, dtype)

    batch = {key: full(shape.length) for key in ("input_ids", "segment_ids", "continuation_ids")}
    batch["positions"] = full(3, shape.length)
    batch["visual_index"] = full(shape.length, value=-1)
    for key in _visual_keys(prompts):
        width = shape.patches // merge_unit if key == "visual_features" else shape.patches
        sizes = (shape.frame_pairs, width)[: prompts[key].ndim - 1] + prompts[key].shape[3:]
        batch[key] = full(*sizes, dtype=prompts[key].dtype)
    batch["response_ids"] = full(shape.sequences, shape.response)
    batch["response_index"] = full(shape.sequences, shape.response)
    batch["response_mask"] = full(shape.sequences, shape.response, dtype=bool)
    batch["sequence"] = full(shape.sequences, 2, value=-1)
    return batch


def _fill(
    row: Mapping[str, np.ndarray], units: Sequence[_Unit], prompts: Mapping[str, np.ndarray], merge_unit: int
) -> None:
    """Writes units into a row of padding, one after the other."""
    at = frame_pairs = number = 0
    for segment, unit in enumerate(units, start=1):
        begin, last = at, at + len(unit.slots) - 1
        source = {key: array[unit.prompt] for key, array in prompts.items()}
        here = slice(begin, last + 1)
        row["input_ids"][here] = source["input_ids"][unit.slots]
        row["positions"][:, here] = source["positions"][:, unit.slots]
        if unit.frame_pairs:
            keys = _visual_keys(source)
            old, new = (a[keys[0]].shape[1] for a in (source, row))
            for key in keys:
                part = np.index_exp[:, : min(old, new)][: source[key].ndim]
                row[key][frame_pairs : frame_pairs + unit.frame_pairs][part] = source[key][
                    : unit.frame_pairs
                ][part]
            # A visual token's number tells its frame group and its place in it; both may have changed.
            if keys == VISION_KEYS:
                old, new = old // merge_unit, new // merge_unit
            index = source["visual_index"][unit.slots]
            moved = (index // old + frame_pairs) * new + index % old
            row["visual_index"][here] = np.where(index < 0, -1, moved)
        at = last + 1
        for continuation, (sample, tokens) in enumerate(
            zip(unit.samples, unit.responses, strict=True), start=1
        ):
            size = len(tokens)
            there = slice(at, at + size)
            row["input_ids"][there] = row["response_ids"][number, :size] = tokens
            row["continuation_ids"][there] = continuation
            row["positions"][:, there] = source["next_position"] + np.arange(size)
            row["response_index"][number, :size] = [last, *range(at, at + size - 1)][:size]
            row["response_mask"][number, :size] = True
            row["sequence"][number] = unit.prompt, sample
            at, number = at + size, number + 1
        row["segment_ids"][begin:at] = segment
        frame_pairs += unit.frame_pairs
