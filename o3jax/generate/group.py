"""Several samples per prompt, whose prompt is prefilled once and stored once.

Prompts wait for one of a fixed number of slots; a slot holds the keys and values of its prompt, and those
of G responses. The device runs windows of steps on all slots. Between two windows, groups that are done
leave and waiting prompts take their slots. Several devices do the same together, see `Spread`.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from o3jax.errors import UserError
from o3jax.generate.cache import KEYS, VALUES, Cache, prefill
from o3jax.generate.loop import put, repeat_steps
from o3jax.generate.sampling import Sampling, StopStrings, draw, sample_keys
from o3jax.generate.slots import Slots, placed
from o3jax.generate.spread import Spread
from o3jax.models.attention import group_attention
from o3jax.models.batch import Batch, take
from o3jax.models.layers import rms_norm
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures
from o3jax.sharding import everywhere, place_rows, shard

_WINDOW = 32  # steps after which the host looks at most: stop strings are found then
_COLUMNS = 64  # of the responses' caches at first; each number of columns is a program of its own


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rollouts:
    """G samples of each prompt; behind a sample's end are the pad token and a log-probability of 0."""

    tokens: Int[np.ndarray, "B G T"]
    logprobs: Float[np.ndarray, "B G T"]  # of each token under the model, without temperature and filters
    length: Int[np.ndarray, "B G"]  # tokens of each sample, its end-of-text included
    finished: Bool[np.ndarray, "B G"]  # False: cut off after T tokens


def sample_groups(
    model: Qwen3VL,
    batch: Batch,
    key: Key[Array, ""],
    *,
    group_size: int,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    sampling: Sampling = Sampling(),  # noqa: B008 (immutable)
    visuals: VisualFeatures | None = None,
    slots: int | None = None,
    stop: StopStrings | None = None,
    spread: Spread | None = None,
) -> Rollouts:
    """Returns `group_size` samples of each prompt of the batch, on the host.

    A sample's random numbers depend on `key`, the prompt's place, the sample's number and the step alone: it
    is the same whatever else is in the batch, whatever `slots`. (Sums in another order may tip the balance
    between two tokens that are equal to a rounding error.)

    Args:
        model: its layers must be separate (`o3jax.models.text.for_decoding`); with `spread` the trainer's.
        batch: what `collate` made of B prompts, padded on either side; of several hosts each gives its own,
            as many as the others.
        max_new_tokens: T; a sample that has not ended by then is cut off.
        eos_ids: a sample ends with one of them.
        visuals: what `model.encode_visuals` returned for the batch; None encodes each prompt when its turn
            comes.
        slots: how many prompts run at a time, all of them by default.
        stop: strings that end a sample, which is cut after the token that completed one, as if it had ended
            there.
        spread: how several devices share the work; the batch then holds features or patches, no `visuals`.

    Raises:
        UserError: if a size is not positive.
    """
    rows, size = batch.text.input_ids.shape
    sizes = {"group_size": group_size, "max_new_tokens": max_new_tokens}
    for name, value in (sizes | ({} if slots is None else {"slots": slots})).items():
        if value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    static = {"sampling": sampling, "eos_ids": tuple(eos_ids)}
    hosts, host = (jax.process_count(), jax.process_index()) if spread else (1, 0)
    numbers = np.arange(rows) * hosts + host  # hosts share a batch row by row
    wave = spread.rows // hosts if spread else 1  # prompts of a host that are read at a time
    count = min(slots or hosts * rows, hosts * rows)
    if spread is None:
        decoder, on = model, contextlib.nullcontext
        state = empty_slots(model, count, group_size, size, max_new_tokens)
    else:
        decoder, on, key = spread.resident(model), spread.decode.use, spread.everywhere(key)
        count += -count % math.lcm(hosts, spread.decode.ways("batch"))
        state = spread.empty(lambda: placed(empty_slots(model, count, group_size, size, max_new_tokens)))
    waiting, running, found = collections.deque(range(rows)), {}, {}
    while waiting or running:
        free = [slot for slot in range(count) if slot not in running]
        while waiting and len(free) >= hosts:
            some = min(wave, len(waiting), len(free) // hosts)
            mine = [waiting.popleft() for _ in range(some)]
            taken, free = np.reshape(free[: hosts * some], (hosts, some)), free[hosts * some :]
            running |= {slot: None for slot in taken.flat} | dict(zip(taken[host], mine, strict=True))
            # The last one again, where there are fewer than a wave: it comes to the same slot.
            again = np.minimum(np.arange(wave), some - 1)
            taken, mine = taken[:, again].reshape(-1), np.array(mine)[again]
            hidden, prefix, prompt = _read(model, batch, mine, numbers[mine], visuals, spread)
            # Without the responses' caches, which it does not touch: they may have become wider.
            lean = dataclasses.replace(state, keys=(), values=())
            with on():
                lean = admit(decoder, hidden, prefix, key, taken, prompt, lean, **static)
            state = dataclasses.replace(lean, keys=state.keys, values=state.values)
        # So many groups leave that a wave can take their slots.
        leave = min(len(free) + hosts * min(wave, len(waiting)), count) if waiting else count
        with on():
            state = with_columns(state, min(_age(state, running) + _WINDOW, max_new_tokens))
            state = decode_window(decoder, key, state, _WINDOW, leave, **static)
        if stop is not None:
            state = _stopped(state, running, stop)
        done = everywhere(state.done()).all(-1)
        if any(done[slot] for slot in running):
            groups = groups_so_far(state, pad_id)
        for slot in [slot for slot in running if done[slot]]:
            if (row := running.pop(slot)) is not None:  # not of another host
                found[row] = jax.tree.map(lambda a, slot=slot: a[slot : slot + 1], groups)
    return jax.tree.map(lambda *groups: np.concatenate(groups), *[found[row] for row in range(rows)])


def _read(
    model: Qwen3VL,
    batch: Batch,
    mine: Int[np.ndarray, " some"],
    numbers: Int[np.ndarray, " some"],
    visuals: VisualFeatures | None,
    spread: Spread | None,
) -> tuple[Float[Array, "R D"], Cache, Int[Array, " R"]]:
    """Returns the last states of some prompts (of those of all hosts), their caches and their numbers."""
    if spread is None:
        (row,) = mine
        return *prefill(model, take(batch, slice(row, row + 1)), 0, _row(visuals, row)), numbers
    pixels = Batch(batch.text, patches=batch.patches, features=batch.features)
    with spread.prefill.use():
        rows, numbers = place_rows((take(pixels, mine), numbers), spread.prefill.mesh)
        hidden, cache = prefill(model, rows, 0, kernel=spread.kernel)
    small = (hidden, cache.filled, cache.length, cache.position, numbers)
    hidden, filled, length, position, numbers = spread.everywhere(small)
    return hidden, Cache(cache.keys, cache.values, filled, length, position), numbers


def empty_slots(model: Qwen3VL, slots: int, samples: int, size: int, limit: int) -> Slots:
    c, dtype = model.config.text, model.text.norm.dtype
    K, H = c.num_key_value_heads, c.head_dim

    def layers(*shape: int) -> tuple[Array, ...]:
        return tuple(jnp.zeros((slots, *shape), dtype) for _ in range(c.num_hidden_layers))

    def ints(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.int32)

    filled, width = jnp.zeros((slots, size), bool), min(limit, _COLUMNS)
    return Slots(
        prefix=Cache(layers(K, H, size), layers(K, size, H), filled, ints(), ints(slots)),
        keys=layers(samples, K, H, width),
        values=layers(samples, K, width, H),
        tokens=ints(slots, samples, limit),
        logprobs=jnp.zeros((slots, samples, limit), jnp.float32),
        length=ints(slots, samples),
        finished=jnp.ones((slots, samples), bool),
        prompt=ints(slots),
        start=ints(slots),
        clock=ints(),
    )


def _age(slots: Slots, running: Iterable[int]) -> int:
    """Returns for how many steps the oldest running group has run."""
    return int(slots.clock) - int(everywhere(slots.start)[list(running)].min())


def with_columns(slots: Slots, need: int) -> Slots:
    """Returns the slots with at least as many columns in the caches of the responses."""
    width = slots.keys[0].shape[-1]
    if need <= width:
        return slots
    while width < need:
        width *= 2
    width = min(width, slots.tokens.shape[-1])
    keys, values = _wider(slots.clock, slots.keys, slots.values, width)
    return dataclasses.replace(slots, keys=keys, values=values)


@functools.partial(jax.jit, static_argnames="width")
def _wider(
    clock: Array, keys: tuple[Array, ...], values: tuple[Array, ...], width: int
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    written = clock - 1 - (clock - 1 - jnp.arange(width)) % width  # the step at which each column was
    column = written % keys[0].shape[-1]
    return tuple(k[..., column] for k in keys), tuple(v[..., column, :] for v in values)


def _row(visuals: VisualFeatures | None, row: int) -> VisualFeatures | None:
    """Returns what the language model reads of one prompt's pixels."""
    if visuals is None:
        return None
    return VisualFeatures(visuals.tokens[row : row + 1], visuals.taps[:, row : row + 1], None, None)


@functools.partial(jax.jit, static_argnames=("sampling", "eos_ids"), donate_argnames="slots")
def admit(
    model: Qwen3VL,
    hidden: Float[Array, "R D"],
    prefix: Cache,
    key: Key[Array, ""],
    slot: Int[Array, " R"],
    number: Int[Array, " R"],
    slots: Slots,
    *,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
) -> Slots:
    """Returns the slots with more prompts, just prefilled, and the first token of each of their samples."""
    samples, limit = slots.tokens.shape[1:]
    logits = model.logits(hidden)[:, None].astype(jnp.float32)
    number = shard(number, None)
    keys = sample_keys(key, number, samples)
    token, logprob = draw(logits, keys, jnp.zeros(len(number), jnp.int32), sampling)
    column = slots.clock % limit
    # Which of the prompts each slot gets.
    chosen = jnp.full(len(slots.prompt), -1).at[slot].set(jnp.arange(len(slot)))

    def put(whole: Array, rows: Array) -> Array:
        if len(rows) == 1:  # on one device nothing else is touched
            return jax.lax.dynamic_update_slice_in_dim(whole, rows, slot[0], axis=0)
        there = (chosen >= 0).reshape(-1, *[1] * (whole.ndim - 1))
        return jnp.where(there, rows[jnp.maximum(chosen, 0)], whole)

    def put_first(whole: Array, first: Array) -> Array:
        now = jax.lax.dynamic_slice_in_dim(whole, column, 1, axis=2)
        return jax.lax.dynamic_update_slice_in_dim(whole, put(now, first[..., None]), column, axis=2)

    def put_all(whole: Sequence[Array], rows: Sequence[Array], axes: tuple) -> tuple[Array, ...]:
        return tuple(put(a, shard(b, None, *axes[1:])) for a, b in zip(whole, rows, strict=True))

    old = slots.prefix
    slots = dataclasses.replace(
        slots,
        prefix=Cache(
            put_all(old.keys, prefix.keys, KEYS),
            put_all(old.values, prefix.values, VALUES),
            put(old.filled, prefix.filled),
            old.length,
            put(old.position, prefix.position),
        ),
        tokens=put_first(slots.tokens, token),
        logprobs=put_first(slots.logprobs, logprob),
        length=put(slots.length, jnp.ones_like(token)),
        finished=put(slots.finished, ended(token, eos_ids)),
        prompt=put(slots.prompt, number),
        start=put(slots.start, jnp.broadcast_to(slots.clock, len(number))),
    )
    return placed(slots)


@functools.partial(jax.jit, static_argnames=("sampling", "eos_ids"), donate_argnames="slots")
def decode_window(
    model: Qwen3VL,
    key: Key[Array, ""],
    slots: Slots,
    steps: Int[Array, ""],
    leave: Int[Array, ""],
    *,
    sampling: Sampling,
    eos_ids: tuple[int, ...],
) -> Slots:
    """Returns the slots after `steps` steps, fewer if `leave` groups are done before."""
    samples, limit = slots.tokens.shape[1:]
    keys = sample_keys(key, slots.prompt, samples)
    until = slots.clock + steps

    def going(slots: Slots) -> Array:
        return (slots.clock < until) & (slots.done().all(-1).sum() < leave)

    def body(slots: Slots) -> Slots:
        hidden, slots = step(model, slots)
        logits = model.logits(hidden).astype(jnp.float32)
        token, logprob = draw(logits, keys, slots.clock - slots.start, sampling)
        done, column = slots.done(), slots.clock % limit

        def put(whole: Array, new: Array) -> Array:
            old = jax.lax.dynamic_index_in_dim(whole, column, axis=2, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(whole, jnp.where(done, old, new), column, axis=2)

        slots = dataclasses.replace(
            slots,
            tokens=put(slots.tokens, token),
            logprobs=put(slots.logprobs, logprob),
            length=slots.length + ~done,
            finished=slots.finished | (~done & ended(token, eos_ids)),
        )
        return placed(slots)

    return repeat_steps(going, body, slots)


def step(model: Qwen3VL, slots: Slots) -> tuple[Float[Array, "B G D"], Slots]:
    """Returns the final hidden states at the newest tokens, and the slots with these in their caches."""
    text, age = model.text, slots.clock - slots.start
    limit, width = slots.tokens.shape[-1], slots.keys[0].shape[-1]
    newest = jax.lax.dynamic_index_in_dim(slots.tokens, slots.clock % limit, axis=2, keepdims=False)
    column = slots.clock % width
    own = (column - jnp.arange(width)) % width <= age[:, None]
    x = text.embedded(newest)
    # The samples of a group stand where a sequence has its tokens: all at one position.
    positions = (slots.prefix.position + age)[:, None, None]
    rope = text.rope(jnp.broadcast_to(positions, (len(x), 3, x.shape[1])), x.dtype)

    def attend(q, k, v, state):
        prefix, (keys, values) = state
        keys, values = put(keys, k, column, axis=4), put(values, v, column, axis=3)
        return group_attention(q, prefix, (keys, values), slots.prefix.filled, own), (keys, values)

    keys, values = [], []
    prefixes = zip(slots.prefix.keys, slots.prefix.values, strict=True)
    for layer, *state in zip(text.layers, prefixes, zip(slots.keys, slots.values, strict=True), strict=True):
        x, (k, v) = text.layer(layer, x, rope, attend, state)
        keys.append(k)
        values.append(v)
    x = rms_norm(x, text.norm[...], text.config.rms_norm_eps)
    return x, dataclasses.replace(slots, keys=tuple(keys), values=tuple(values), clock=slots.clock + 1)


def ended(tokens: Int[Array, "B G"], eos_ids: tuple[int, ...]) -> Bool[Array, "B G"]:
    return jnp.isin(tokens, jnp.asarray(eos_ids, jnp.int32))


def groups_so_far(slots: Slots, pad_id: int) -> Rollouts:
    """Returns what the slots hold so far, each group's first token in front. (Copies: slots are donated.)"""
    start, length, finished = (np.array(everywhere(x)) for x in (slots.start, slots.length, slots.finished))
    limit = slots.tokens.shape[-1]
    column = (start[:, None, None] + np.arange(limit)) % limit
    there = np.arange(limit) < length[..., None]
    tokens, logprobs = (
        np.where(there, np.take_along_axis(everywhere(x), column, axis=2), nothing)
        for x, nothing in ((slots.tokens, np.int32(pad_id)), (slots.logprobs, np.float32(0)))
    )
    return Rollouts(tokens, logprobs, length, finished)


def _stopped(slots: Slots, running: Iterable[int], stop: StopStrings) -> Slots:
    """Returns the slots with each running sample ended at the token that completes a stop string."""
    groups = groups_so_far(slots, 0)
    for at in itertools.product(running, range(groups.length.shape[1])):
        length = stop.length(groups.tokens[at][: groups.length[at]])
        if length is not None:
            groups.length[at], groups.finished[at] = length, True
    length, finished = (
        jax.device_put(new, old.sharding)
        for new, old in ((groups.length, slots.length), (groups.finished, slots.finished))
    )
    return dataclasses.replace(slots, length=length, finished=finished)
