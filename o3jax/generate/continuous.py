"""Texts that begin and end at different times, generated together.

They take the slots of the group sampler, one sample in each. The device runs windows of steps on all that are
taken; between two windows texts leave and others begin, each with its own way of choosing tokens.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from o3jax.generate.cache import Cache
from o3jax.generate.group import Slots, empty_slots, ended, groups_so_far, step, with_columns
from o3jax.generate.loop import repeat_steps
from o3jax.generate.sampler import Ending, Generated, most_probable, penalised
from o3jax.generate.sampling import nucleus
from o3jax.models.qwen3_vl import Qwen3VL

_COLUMNS = (128, 512)  # of the caches: each number of columns, and of running slots, is a program of its own


@dataclasses.dataclass(frozen=True)
class Choice:
    """How the tokens of one text are chosen."""

    temperature: float = 0.0  # 0 takes the most probable token
    top_p: float = 1.0  # 1 keeps everything
    seed: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Running:
    """The slots, and what the group sampler does not need: each row's choice, states and past."""

    slots: Slots
    temperature: Float[Array, " B"]
    top_p: Float[Array, " B"]
    key: Key[Array, " B"]
    states: Float[Array, "B T D"]  # final-norm hidden state at each token, in the column of the token
    said: Bool[Array, "B V"] | None  # tokens that stand before, where they are penalised


class Continuous:
    """A fixed number of slots for texts that come and go; for one thread.

    Args:
        model: its layers must be separate (`o3jax.models.text.for_decoding`).
        slots: texts that run at a time.
        ending: its `max_new_tokens` are those of the longest text; the caller ends each by then.
    """

    def __init__(self, model: Qwen3VL, slots: int, ending: Ending):
        self.model, self.size, self.ending, self.limit = model, slots, ending, ending.max_new_tokens
        self.running: set[int] = set()
        self._state: _Running | None = None  # as wide as the prompts that are there

    def free(self) -> int:
        """Returns how many more texts may begin."""
        return self.size - len(self.running)

    def begin(
        self, hidden: Float[Array, "1 D"], prompt: Cache, said: Bool[Array, "1 V"] | None, choice: Choice
    ) -> int:
        """Returns the slot of a text, begun with its first token.

        Args:
            hidden, prompt: what `prefill` returned for one prompt with no room for new tokens.
            said: which tokens the prompt holds, where they are penalised.
        """
        slot = min(set(range(self.size)) - self.running)
        prompt = self._fitted(prompt)
        self._state = _begin(
            self.model,
            hidden,
            prompt,
            said,
            slot,
            (choice.temperature, choice.top_p, jax.random.key(choice.seed)),
            self._state,
            ending=self.ending,
        )
        self.running.add(slot)
        return slot

    def window(self, steps: int, leave: int) -> dict[int, Generated]:
        """Returns what every running text is after some steps, fewer if `leave` texts have ended before.

        States are left out, see `states`.
        """
        slots = self._state.slots
        age = int(slots.clock) - int(np.array(slots.start)[list(self.running)].min())
        need = min(age + steps + 1, self.limit)
        width = next((columns for columns in _COLUMNS if need <= columns < self.limit), self.limit)
        self._state = dataclasses.replace(self._state, slots=with_columns(slots, width))
        # The slots in use, in few sizes: an empty one costs as much as a full one.
        rows = next((few for few in (1, 4) if max(self.running) < few < self.size), self.size)
        idle = np.ones(rows, bool)
        idle[list(self.running)] = False
        self._state = _window(
            self.model,
            self._state,
            idle,
            steps,
            leave,
            rows=rows,
            ending=self.ending,
        )
        groups = groups_so_far(self._state.slots, self.ending.pad_id)
        return {
            slot: Generated(groups.tokens[slot], groups.logprobs[slot], groups.length[slot], None)
            for slot in self.running
        }

    def states(self, slot: int) -> Float[np.ndarray, "T D"]:
        """Returns the final-norm hidden state at each token of a text; zero at the last one."""
        start = int(self._state.slots.start[slot])
        return np.roll(np.array(self._state.states[slot]), -(start % self.limit), axis=0)

    def end(self, slot: int) -> None:
        """Frees the slot of a text."""
        self.running.remove(slot)
        if not self.running:
            self._state = None  # the next prompts may be shorter

    def _fitted(self, prompt: Cache) -> Cache:
        """Returns the prompt, padded to the room that slots have, which grows where that is too small."""
        size = prompt.filled.shape[1]
        if self._state is None:
            self._state = self._empty(size)
        room = self._state.slots.prefix.filled.shape[1]
        if size > room:
            slots = self._state.slots
            slots = dataclasses.replace(slots, prefix=_padded(slots.prefix, size))
            self._state = dataclasses.replace(self._state, slots=slots)
        return _padded(prompt, max(size, room))

    def _empty(self, size: int) -> _Running:
        c = self.model.config.text
        return _Running(
            slots=with_columns(
                empty_slots(self.model, self.size, 1, size, self.limit), min(_COLUMNS[0], self.limit)
            ),
            temperature=jnp.zeros(self.size),
            top_p=jnp.ones(self.size),
            key=jax.random.split(jax.random.key(0), self.size),
            states=jnp.zeros((self.size, self.limit, c.hidden_size), self.model.text.norm.dtype),
            said=None if self.ending.repetition_penalty == 1 else jnp.zeros((self.size, c.vocab_size), bool),
        )


def _padded(prompt: Cache, size: int) -> Cache:
    more = size - prompt.filled.shape[1]
    if not more:
        return prompt
    keys = tuple(jnp.pad(k, ((0, 0), (0, 0), (0, 0), (0, more))) for k in prompt.keys)
    values = tuple(jnp.pad(v, ((0, 0), (0, 0), (0, more), (0, 0))) for v in prompt.values)
    return dataclasses.replace(
        prompt, keys=keys, values=values, filled=jnp.pad(prompt.filled, ((0, 0), (0, more)))
    )


def _choose(
    logits: Float[Array, "B V"], running: _Running, age: Int[Array, " B"], penalty: float
) -> tuple[Int[Array, " B"], Float[Array, " B"]]:
    """Returns the next token of each row, and its log-probability under the model."""
    logits = logits.astype(jnp.float32)
    best, logprob = most_probable(logits, running.said, penalty)

    def drawn() -> tuple[Array, Array]:
        scores = logits if running.said is None else penalised(logits, running.said, penalty)
        scores = scores / jnp.where(running.temperature > 0, running.temperature, 1)[:, None]
        noise = jax.vmap(lambda key, at: jax.random.gumbel(jax.random.fold_in(key, at), logits.shape[-1:]))
        token = jnp.argmax(nucleus(scores, running.top_p[:, None]) + noise(running.key, age), -1)
        token = jnp.where(running.temperature > 0, token, best).astype(jnp.int32)
        return token, jnp.take_along_axis(jax.nn.log_softmax(logits), token[:, None], -1)[:, 0]

    return jax.lax.cond((running.temperature > 0).any(), drawn, lambda: (best, logprob))


@functools.partial(jax.jit, static_argnames="ending", donate_argnames="running")
def _begin(
    model: Qwen3VL,
    hidden: Float[Array, "1 D"],
    prompt: Cache,
    said: Bool[Array, "1 V"] | None,
    slot: Int[Array, ""],
    choice: tuple[Float[Array, ""], Float[Array, ""], Key[Array, ""]],
    running: _Running,
    *,
    ending: Ending,
) -> _Running:
    slots = running.slots
    column = slots.clock % slots.tokens.shape[-1]

    def put(whole: Array, one: Array) -> Array:
        return whole.at[slot].set(one)

    temperature, top_p, key = choice
    running = dataclasses.replace(
        running,
        temperature=put(running.temperature, temperature),
        top_p=put(running.top_p, top_p),
        key=put(running.key, key),
        states=put(running.states, 0.0),
        said=running.said if said is None else put(running.said, said[0]),
    )
    one = jax.tree.map(lambda a: a[slot][None] if a.ndim else a, dataclasses.replace(running, slots=None))
    token, logprob = _choose(model.logits(hidden), one, jnp.zeros(1, jnp.int32), ending.repetition_penalty)
    if running.said is not None:
        running = dataclasses.replace(running, said=running.said.at[slot, token[0]].set(True))
    slots = dataclasses.replace(
        slots,
        prefix=jax.tree.map(lambda a, b: put(a, b[0]) if a.ndim else a, slots.prefix, prompt),
        tokens=slots.tokens.at[slot, 0, column].set(token[0]),
        logprobs=slots.logprobs.at[slot, 0, column].set(logprob[0]),
        length=slots.length.at[slot].set(1),
        finished=slots.finished.at[slot, 0].set(ended(token, ending.eos_ids)[0]),
        start=put(slots.start, slots.clock),
    )
    return dataclasses.replace(running, slots=slots)


@functools.partial(jax.jit, static_argnames=("rows", "ending"), donate_argnames="running")
def _window(
    model: Qwen3VL,
    running: _Running,
    idle: Bool[Array, " rows"],
    steps: Int[Array, ""],
    leave: Int[Array, ""],
    *,
    rows: int,
    ending: Ending,
) -> _Running:
    """Returns the slots after `steps` steps of the first `rows`, fewer if `leave` that are not idle end."""
    whole = running
    running = jax.tree.map(lambda a: a[:rows] if a.ndim else a, whole)
    limit = running.slots.tokens.shape[-1]
    until = running.slots.clock + steps
    every = jnp.arange(rows)

    def going(running: _Running) -> Array:
        return (running.slots.clock < until) & ((running.slots.done()[:, 0] & ~idle).sum() < leave)

    def body(running: _Running) -> _Running:
        before = running.slots.clock % limit  # the column of the newest tokens
        hidden, slots = step(model, running.slots)
        hidden, done, column = hidden[:, 0], slots.done()[:, 0] | idle, slots.clock % limit
        token, logprob = _choose(
            model.logits(hidden), running, slots.clock - slots.start, ending.repetition_penalty
        )

        def put(array: Array, at: Array, new: Array) -> Array:
            old = jax.lax.dynamic_index_in_dim(array, at, axis=-1, keepdims=False)
            return jax.lax.dynamic_update_index_in_dim(array, jnp.where(done[:, None], old, new), at, axis=-1)

        slots = dataclasses.replace(
            slots,
            tokens=put(slots.tokens, column, token[:, None]),
            logprobs=put(slots.logprobs, column, logprob[:, None]),
            length=slots.length + ~done[:, None],
            finished=slots.finished | (~done & ended(token, ending.eos_ids))[:, None],
        )
        states = jnp.where(done[:, None], running.states[:, before], hidden)
        return dataclasses.replace(
            running,
            slots=slots,
            states=running.states.at[:, before].set(states),
            said=None if running.said is None else running.said.at[every, token].set(True),
        )

    after = repeat_steps(going, body, running)

    def changed(running: _Running) -> tuple:  # all but the prompts, and how tokens are chosen
        return dataclasses.replace(running.slots, prefix=None), running.states, running.said

    slots, states, said = jax.tree.map(
        lambda a, b: a.at[:rows].set(b) if a.ndim else b, changed(whole), changed(after)
    )
    slots = dataclasses.replace(slots, prefix=whole.slots.prefix)
    return dataclasses.replace(whole, slots=slots, states=states, said=said)
