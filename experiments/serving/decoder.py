"""One thread that generates the texts of all requests together; a waiting one joins at a window's end."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import jax
import numpy as np

from experiments.serving.shared import Shared
from o3jax.generate.cache import Cache, prefill, prefill_behind
from o3jax.generate.continuous import Choice, Continuous
from o3jax.generate.sampler import Ending, Generated, said
from o3jax.inputs.collate import bucket, coarse
from o3jax.models.batch import Batch, TextRow, take
from o3jax.models.qwen3_vl import Qwen3VL, VisualFeatures

_KEPT_BYTES = 2**30  # of prefixes
_SIZES = coarse(64, 128, 192, 320, 512)  # tokens that their parts are padded to
_WINDOW = 16  # steps after which texts are streamed, and others may join


@dataclasses.dataclass
class Text:
    """One text to be generated.

    Attributes:
        check: raises what ends the request that it belongs to, if that is so.
        said: is told the tokens so far, and returns after how many of them the text is to end, None if it
            goes on.
    """

    choice: Choice
    check: Callable[[], None]
    said: Callable[[np.ndarray], int | None]
    limit: int
    begun: tuple[Any, ...] = ()
    done: Future = dataclasses.field(default_factory=Future)


class Decoder:
    """Generates as `o3jax.generate.sampler.greedy` does, for many threads at a time.

    Args:
        slots: texts that run at a time.
        max_new_tokens: of a text.
    """

    def __init__(self, slots: int, max_new_tokens: int):
        self.slots, self.limit = slots, max_new_tokens
        self.tokens = 0  # generated so far
        self._prefixes = Shared(_KEPT_BYTES)
        self._texts: Continuous | None = None
        self._waiting: collections.deque[Text] = collections.deque()
        self._running: dict[int, Text] = {}
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="decoder", daemon=True)
        self._thread.start()

    def generate(
        self,
        begin: Callable[[np.ndarray], Text],
        model: Qwen3VL,
        batch: Batch,
        ending: Ending,
        visuals: VisualFeatures | None = None,
    ) -> Generated:
        """Returns a continuation of each row of the batch, on the host; `greedy` says what the arguments are.

        Args:
            begin: makes a text, of the tokens of its prompt.
        """
        if self._texts is None:
            self._texts = Continuous(
                model, self.slots, dataclasses.replace(ending, max_new_tokens=self.limit)
            )
        texts = []
        for row in range(len(batch.text.input_ids)):
            one = Batch(take(batch.text, slice(row, row + 1)))
            text = begin(np.asarray(one.text.input_ids)[np.asarray(one.text.segment_ids) > 0])
            seen = visuals
            if visuals is not None:
                seen = VisualFeatures(
                    visuals.tokens[row : row + 1], visuals.taps[:, row : row + 1], None, None
                )
            there = said(one.text, model.config.text.vocab_size) if ending.repetition_penalty != 1 else None
            text.begun = (*self._prefilled(model, one.text, seen, (id(visuals), row), visuals), there)
            text.limit = min(text.limit, ending.max_new_tokens, self.limit)
            texts.append(text)
        with self._changed:
            self._waiting.extend(texts)
            self._changed.notify()
        rows = [text.done.result() for text in texts]
        size = max(len(tokens) for tokens, _, _ in rows)
        tokens = np.full((len(rows), size), ending.pad_id, np.int32)
        logprobs = np.zeros((len(rows), size), np.float32)
        states = np.zeros((len(rows), size, rows[0][2].shape[-1]), rows[0][2].dtype)
        for row, (said_tokens, logprob, state) in enumerate(rows):
            count = len(said_tokens)
            tokens[row, :count], logprobs[row, :count], states[row, :count] = said_tokens, logprob, state
        return Generated(tokens, logprobs, np.array([len(one) for one, _, _ in rows]), states)

    def _prefilled(
        self, model: Qwen3VL, text: TextRow, seen: VisualFeatures | None, key: tuple, kept: Any
    ) -> tuple[jax.Array, Cache]:
        """Returns what `prefill` does; what texts share up to the end of their video is prefilled once.

        Args:
            key: of the pixels, as long as `kept` is.
        """
        text = jax.tree.map(np.asarray, text)
        visual = np.flatnonzero(text.visual_index[0] >= 0)
        count = int((text.segment_ids > 0).sum())
        cut = int(visual[-1]) + 2 if len(visual) else 0  # with the mark of the end of vision
        if not 0 < cut < count or not text.segment_ids[0, 0]:
            return prefill(model, Batch(text), 0, seen)
        head, tail = _part(text, 0, cut), _part(text, cut, count)

        def make() -> tuple[Cache, Any]:
            return prefill(model, Batch(head), 0, seen)[1], kept

        found = self._prefixes.get((key, head.input_ids.tobytes()), make, lambda one: nbytes(one[0]))
        return prefill_behind(model, tail, found[0])

    def close(self) -> None:
        """Ends the thread; what runs is lost."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    return
            try:
                self._window()
            except Exception as error:  # nobody else would tell those who wait
                for text in (*self._running.values(), *self._waiting):
                    if not text.done.done():
                        text.done.set_exception(error)
                self._running.clear()
                self._waiting.clear()
                self._texts = None

    def _window(self) -> None:
        """Lets waiting texts join, runs a window, and tells and ends whom it concerns."""
        texts = self._texts
        while self._waiting and texts.free():
            text = self._waiting.popleft()
            if not self._over(text):
                self._running[texts.begin(*text.begun, text.choice)] = text
                text.begun = ()
        if not self._running:
            return
        leave = 1 if self._waiting else len(self._running)
        for slot, found in texts.window(_WINDOW, leave).items():
            text, count = self._running[slot], min(int(found.length[0]), self._running[slot].limit)
            tokens = found.tokens[0, :count]
            ends = int(tokens[-1]) in texts.ending.eos_ids or count == text.limit
            if over := self._over(text):
                ends = True
            elif (cut := text.said(tokens)) is not None:
                tokens, ends = tokens[:cut], True
            if ends:
                if not over:
                    count = len(tokens)
                    self.tokens += count
                    states = texts.states(slot)[:count].copy()
                    states[count - 1 :] = 0
                    text.done.set_result((tokens, found.logprobs[0, :count], states))
                texts.end(slot)
                del self._running[slot]

    def _over(self, text: Text) -> bool:
        try:
            text.check()
        except Exception as error:
            text.done.set_exception(error)
            return True
        return False


def _part(text: TextRow, start: int, stop: int) -> TextRow:
    """Returns some tokens of a row, padded to a size that recurs."""
    size = bucket(stop - start, _SIZES)

    def cut(array: np.ndarray, fill: int = 0) -> np.ndarray:
        some = array[..., start:stop]
        return np.pad(some, [(0, 0)] * (some.ndim - 1) + [(0, size - some.shape[-1])], constant_values=fill)

    return TextRow(
        input_ids=cut(text.input_ids),
        segment_ids=cut(text.segment_ids),
        positions=cut(text.positions),
        visual_index=cut(text.visual_index, -1),
        next_position=text.next_position,
    )


def nbytes(arrays: Any) -> int:
    """Returns the bytes of all arrays."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(arrays))
