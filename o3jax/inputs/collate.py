"""From a processor's output to the batch that the model reads: positions, visual layout, padding.

Everything that depends on a grid is computed here, in numpy, as data, so that the compiled model
depends on padded shapes only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Float, Int, UInt8

from o3jax.errors import UserError
from o3jax.models.batch import Batch, Patches, TextRow
from o3jax.models.config import Config, VisionConfig

# Sizes that sequences, pairs and patches are padded to, so that few programs serve all inputs.
BUCKETS = tuple(sorted(base << n for base in (2, 3) for n in range(0, 18)))

_PART = 16384  # patches that the tower reads at a time, where it reads parts
_SPARE = 1.15  # times its patches that a group of unlike things may have room for


def bucket(size: int, buckets: Sequence[int] = BUCKETS) -> int:
    """Returns the smallest bucket that holds `size`; UserError if the size is larger than every bucket."""
    for candidate in buckets:
        if size <= candidate:
            return candidate
    raise UserError(f"{size} does not fit the largest bucket ({buckets[-1]}); use a shorter video or prompt")


def coarse(*first: int) -> tuple[int, ...]:
    """Returns buckets of which the first are far apart: where sizes are cheap, programs are dear."""
    return *first, *(size for size in BUCKETS if size > first[-1])


@functools.lru_cache(maxsize=256)
def frame_layout(
    height: int, width: int, grid_side: int, merge: int
) -> tuple[Int[np.ndarray, "P 2"], Int[np.ndarray, "P 4"], Float[np.ndarray, "P 4"]]:
    """Returns coordinates and position-table taps of one frame's patches, in merge-block order.

    The learned table is read with align-corners bilinear interpolation (transformers,
    modeling_qwen3_vl.py): four rows and their float32 weights per patch.
    """

    def axis(size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = np.arange(size, dtype=np.float32) * np.float32((grid_side - 1) / max(size - 1, 1))
        low = np.floor(at).astype(np.int32)
        return low, np.minimum(low + 1, grid_side - 1), (at - low).astype(np.float32)

    r0, r1, a = axis(height)
    c0, c1, b = axis(width)
    a, b = a[:, None], b[None, :]
    index = np.stack([r[:, None] * grid_side + c[None, :] for r in (r0, r1) for c in (c0, c1)], -1)
    weight = np.stack([(1 - a) * (1 - b), (1 - a) * b, a * (1 - b), a * b], -1)
    coords = np.stack(np.meshgrid(np.arange(height), np.arange(width), indexing="ij"), -1)

    def blocks(x: np.ndarray) -> np.ndarray:
        return rearrange(x, "(h m) (w n) k -> (h w m n) k", m=merge, n=merge)

    return blocks(coords).astype(np.int32), blocks(index).astype(np.int32), blocks(weight).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """One frame pair of a row: where its patches start in the processor's output, and its size."""

    source: str
    start: int
    height: int
    width: int


def _pairs(inputs: Mapping[str, np.ndarray], values: str, grids: str) -> Iterator[_Pair]:
    sizes = np.asarray(inputs.get(grids, np.zeros((0, 3), int)))
    rows = len(inputs.get(values, ()))
    if sizes.ndim != 2 or sizes.shape[1] != 3 or sizes.dtype.kind not in "iu" or (sizes < 1).any():
        raise UserError(
            f"{grids} must be [items, 3] whole numbers of at least 1: pass what the processor returns"
        )
    described = sum(t * h * w for t, h, w in sizes.tolist())
    if described != rows:  # before a pair is made for each
        raise UserError(
            f"{grids} describes {described} patches but {values} has {rows} rows: pass matching arrays"
        )
    start = 0
    for t, h, w in sizes.tolist():
        for _ in range(t):
            yield _Pair(values, start, h, w)
            start += h * w


def collate(
    inputs: Mapping[str, np.ndarray],
    config: Config,
    *,
    length: int | None = None,
    frame_pairs: int | None = None,
    patches: int | None = None,
) -> Batch:
    """Returns the batch for what a Qwen3-VL processor returned; `text.next_position` included.

    Every frame pair has room for the patches of the largest; `pairs_by_size` wastes none.

    Args:
        inputs: input_ids [B, S], optionally attention_mask, and pixel_values(_videos) with
            image_grid_thw / video_grid_thw, all images and all videos in prompt order.
        config: the model's configuration.
        length, frame_pairs, patches: sizes to pad S, T and P to; None takes the smallest that fits.

    Raises:
        UserError: if placeholders and grids disagree, or something does not fit the given sizes.
    """
    text, owners, spans = _read_prompts(inputs, config, length)
    frames = None
    if any(owners) or frame_pairs:
        frames = _patches(inputs, owners, config.vision, frame_pairs, patches)
        stride = frames.values.shape[2] // config.vision.merge_unit
        for row, slots_of_pairs in enumerate(spans):
            for number, slots in enumerate(slots_of_pairs):
                text.visual_index[row, slots] = number * stride + np.arange(len(slots))
    return Batch(text, patches=frames)


@dataclasses.dataclass(frozen=True)
class SizedPairs:
    """The frame pairs of a batch in parts of like size, and where their tokens belong.

    Attributes:
        text: its `visual_index` counts the tokens of a row's pairs one after the other.
        parts: patches [1, n, P] of one part after the other, made when asked for.
        source: for each of these tokens its place among those of all parts, padding included.
        length: how many tokens each row has.
    """

    text: TextRow
    parts: Iterator[Patches]
    source: Int[np.ndarray, "B tokens"]
    length: Int[np.ndarray, " B"]


def pairs_by_size(
    inputs: Mapping[str, np.ndarray], config: Config, *, length: int | None = None
) -> SizedPairs | None:
    """Returns the frame pairs of a processor's output for a tower that reads a part at a time; None without.

    Whatever sizes are mixed, the parts hold at most 1.5 times the patches that are there.

    Args:
        inputs, config, length: as for `collate`.

    Raises:
        UserError: as `collate`.
    """
    text, owners, spans = _read_prompts(inputs, config, length)
    if not any(owners):
        return None
    unit, pairs = config.vision.merge_unit, [pair for mine in owners for pair in mine]
    sizes = [pair.height * pair.width for pair in pairs]
    shapes, first, at = [], np.zeros(len(pairs), int), 0  # the first token of each pair, of all parts
    for numbers in alike([[(1, size)] for size in sizes]):
        largest = max(sizes[number] for number in numbers)
        most = _PART // largest if largest <= _PART // 8 else 1
        count = few_sizes(-(-len(numbers) // -(-len(numbers) // most)))
        for start in range(0, len(numbers), count):
            some = numbers[start : start + count]
            shapes.append((some, (1, count, largest)))
            first[some] = at + np.arange(len(some)) * (largest // unit)
            at += count * (largest // unit)

    totals = np.array([sum(map(len, slots)) for slots in spans])
    source, place = np.zeros((len(spans), few_sizes(totals.max())), np.int32), iter(first)
    for row, slots_of_pairs in enumerate(spans):
        offset = 0
        for slots in slots_of_pairs:
            own = np.arange(len(slots))
            text.visual_index[row, slots] = offset + own
            source[row, offset + own] = next(place) + own
            offset += len(slots)

    def parts() -> Iterator[Patches]:
        for numbers, shape in shapes:
            yield _patches(inputs, [[pairs[n] for n in numbers]], config.vision, *shape[1:])

    return SizedPairs(text, parts(), source, totals.astype(np.int32))


def few_sizes(count: int) -> int:
    """Returns the next number with four leading binary digits and zeros behind: at most an eighth more."""
    step = 1 << max(int(count).bit_length() - 4, 0)
    return -(-count // step) * step


def alike(shapes: Sequence[Sequence[tuple[int, int]]]) -> list[list[int]]:
    """Returns the numbers of things in groups, in which room for the largest in each way wastes little.

    Args:
        shapes: of each thing (how many, how large) of each of its parts.
    """

    def area(shape: Sequence[tuple[int, int]]) -> int:
        return sum(count * size for count, size in shape)

    groups: list[list[int]] = []
    room, used = [], 0
    for number in sorted(range(len(shapes)), key=lambda n: -area(shapes[n])):
        shape = shapes[number]
        both = [tuple(map(max, *parts)) for parts in zip(room, shape, strict=False)]
        if groups and area(both) * (len(groups[-1]) + 1) <= _SPARE * (used + area(shape)):
            groups[-1].append(number)
            room, used = both, used + area(shape)
        else:
            groups.append([number])
            room, used = shape, area(shape)
    return groups


def _read_prompts(
    inputs: Mapping[str, np.ndarray], config: Config, length: int | None
) -> tuple[TextRow, list[list[_Pair]], list[list[np.ndarray]]]:
    """Returns the texts, and for each row its frame pairs and the token slots of each."""
    ids = np.asarray(inputs["input_ids"], np.int32)
    mask = np.asarray(inputs.get("attention_mask", np.ones_like(ids))).astype(bool)
    if ids.ndim != 2 or mask.shape != ids.shape:
        raise UserError(f"input_ids {ids.shape} and attention_mask {mask.shape} must both be [batch, length]")
    size = length or ids.shape[1]
    if size < ids.shape[1]:
        raise UserError(f"input_ids has {ids.shape[1]} tokens, more than the {size} that were asked for")
    rows = len(ids)
    positions = np.zeros((rows, 3, size), np.int32)
    next_position = np.zeros(rows, np.int32)
    owners: list[list[_Pair]] = []
    token_spans: list[list[np.ndarray]] = []
    pending = {
        config.image_token_id: _pairs(inputs, "pixel_values", "image_grid_thw"),
        config.video_token_id: _pairs(inputs, "pixel_values_videos", "video_grid_thw"),
    }
    merge, unit = config.vision.spatial_merge_size, config.vision.merge_unit
    for row in range(rows):
        slots = np.flatnonzero(mask[row])
        tokens = ids[row, slots]
        visual = np.isin(tokens, list(pending))
        at, cursor, mine, spans = 0, 0, [], []
        while at < len(tokens):
            if not visual[at]:
                stop = at + (int(np.argmax(visual[at:])) if visual[at:].any() else len(tokens) - at)
                positions[row][:, slots[at:stop]] = cursor + np.arange(stop - at)
                cursor += stop - at
                at = stop
                continue
            pair = next(pending[int(tokens[at])], None)
            if pair is None:
                raise UserError(
                    f"row {row} of input_ids has more visual placeholders than the grids describe"
                )
            count = pair.height * pair.width // unit
            stop = at + count
            if stop > len(tokens) or (tokens[at:stop] != tokens[at]).any():
                raise UserError(
                    f"row {row} of input_ids has too few placeholders in a row for a grid of "
                    f"{pair.height} x {pair.width} patches ({count} are needed)"
                )
            h, w = pair.height // merge, pair.width // merge
            offsets = np.stack([np.zeros(count, int), np.arange(count) // w, np.arange(count) % w])
            positions[row][:, slots[at:stop]] = cursor + offsets
            cursor += max(h, w)
            mine.append(pair)
            spans.append(slots[at:stop])
            at = stop
        next_position[row] = cursor
        owners.append(mine)
        token_spans.append(spans)
    for token, left in pending.items():
        if next(left, None) is not None:
            kind = "image" if token == config.image_token_id else "video"
            raise UserError(f"the {kind} grids describe more frames than input_ids has placeholders for")

    text = TextRow(
        input_ids=_pad(ids, size),
        segment_ids=_pad(mask.astype(np.int32), size),
        positions=positions,
        visual_index=np.full((rows, size), -1, np.int32),
        next_position=next_position,
    )
    return text, owners, token_spans


def _pad(x: np.ndarray, size: int) -> np.ndarray:
    return np.pad(x, ((0, 0), (0, size - x.shape[1])))


def _patches(
    inputs: Mapping[str, np.ndarray],
    owners: list[list[_Pair]],
    c: VisionConfig,
    frame_pairs: int | None,
    patches: int | None,
) -> Patches:
    need_pairs = max(1, max(len(mine) for mine in owners))
    need_patches = max([g.height * g.width for mine in owners for g in mine], default=c.merge_unit)
    shape = (len(owners), frame_pairs or need_pairs, patches or need_patches)
    if shape[1] < need_pairs or shape[2] < need_patches:
        raise UserError(
            f"{need_pairs} frame pairs of up to {need_patches} patches do not fit the "
            f"{shape[1]} x {shape[2]} that were asked for"
        )
    sources = [np.asarray(inputs[k]) for k in ("pixel_values", "pixel_values_videos") if k in inputs]
    out = empty_patches(shape, c, sources[0].dtype if sources else np.float32)
    for row, mine in enumerate(owners):
        for number, pair in enumerate(mine):
            values = inputs[pair.source][pair.start : pair.start + pair.height * pair.width]
            put_frames(out, (row, number), values, (pair.height, pair.width), c)
    return out


def empty_patches(shape: tuple[int, ...], c: VisionConfig, dtype: np.dtype | type = np.uint8) -> Patches:
    """Returns patches [*B, T, P] that are all padding."""
    return Patches(
        values=np.zeros((*shape, c.patch_dim), dtype),
        length=np.zeros(shape[:-1], np.int32),
        coords=np.zeros((*shape, 2), np.int32),
        pos_index=np.zeros((*shape, 4), np.int32),
        pos_weight=np.zeros((*shape, 4), np.float32),
    )


def put_frames(
    into: Patches,
    where: tuple[int | slice, ...],
    values: Float[np.ndarray, "*n P C"] | UInt8[np.ndarray, "*n P C"],
    grid: tuple[int, int],
    c: VisionConfig,
) -> None:
    """Writes frame pairs of one size, in merge-block order, and where their patches stand.

    Args:
        into: numpy arrays with room for them.
        where: the pairs' place in the axes in front of the patches.
        values: patches of the pairs.
        grid: rows and columns of patches.
    """
    count = grid[0] * grid[1]
    coords, index, weight = frame_layout(*grid, c.grid_side, c.spatial_merge_size)
    here = (*where, slice(count))
    into.length[where] = count
    into.values[here], into.coords[here] = values, coords
    into.pos_index[here], into.pos_weight[here] = index, weight
