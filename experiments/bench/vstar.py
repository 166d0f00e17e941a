"""V-STaR's five generations an item: each video read and encoded once for all its items, as an evaluation
does it, against the naive loop that reads and encodes it for each generation.

    python -m experiments.bench.vstar [clips] [level]

Both sides read the made benchmark, two items a clip, with o3-tiny. Clips of level 3 (the default) last 30 to
90 s, V-STaR's 15 s to an hour; those of level 1, which `o3jax data make` writes, 6 s. Nothing is timed before
both sides have given the same texts; then they take turns.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.formats.benchmarks import registry
from data_pipelines.formats.benchmarks.item import Item
from data_pipelines.synthetic.benchmarks.make import make_benchmarks
from experiments.cli import shell
from experiments.evaluation.benchmarks.answering import Asked, Decoding, answer_video, asked_for, prompts_of
from o3jax import api
from o3jax.errors import UserError

NEW_TOKENS = 64
_PROMPTS = registry.FORMATS["vstar"].prompts["official"]


Ask = Callable[[api.Model, Sequence[Item]], list[dict[str, str]]]


def together(model: api.Model, items: Sequence[Item]) -> list[dict[str, str]]:
    """Returns the five texts of each item about a video, as an evaluation makes them."""
    asked = [Asked(item, prompts_of(_PROMPTS, item, model)) for item in items]
    return [record["texts"] for record in answer_video(model, asked, Decoding(NEW_TOKENS))]


def naive(model: api.Model, items: Sequence[Item]) -> list[dict[str, str]]:
    """Returns the same, each by a call of its own, as `model.answer` makes one: it reads the video, encodes
    it, and asks the evidence decoder for each mention."""
    found = []
    for item in items:
        texts = {}
        for prompt in prompts_of(_PROMPTS, item, model):
            request, clip = model.request(item.video, item.question, search=False)
            request = asked_for(model, request, item, prompt, clip)
            texts[prompt.part] = model.respond([request], max_new_tokens=NEW_TOKENS)[0].text
        found.append(texts)
    return found


def measure(clips: int, level: int) -> Iterator[tuple[str, Sequence[Item], list[float], list[float]]]:
    """Yields (video, items, processor and wall seconds of the naive loop, and of them together)."""
    model = api.load("o3-tiny")
    with tempfile.TemporaryDirectory(prefix="o3jax-") as folder:
        make_benchmarks(folder, clips, level, ["vstar"])
        items = registry.load("vstar", Path(folder) / "vstar")
        videos = [[item for item in items if item.video == video] for video in {i.video: 0 for i in items}]
        for some in videos:  # compiles, too
            if naive(model, some) != together(model, some):
                raise UserError(f"{some[0].video}: no speed is shown because the texts differ")
        for some in videos:
            yield Path(some[0].video).stem, some, _timed(naive, model, some), _timed(together, model, some)


def _timed(ask: Ask, model: api.Model, items: Sequence[Item]) -> list[float]:
    clocks = (time.process_time, time.perf_counter)
    began = [clock() for clock in clocks]
    ask(model, items)
    return [clock() - start for clock, start in zip(clocks, began, strict=True)]


def _told(name: str, items: int, naive_s: Sequence[float], together_s: Sequence[float]) -> str:
    both = zip(("processor", "clock"), naive_s, together_s, strict=True)
    sides = (f"{kind} {a / items:.2f} s and {b / items:.2f} s, ratio {a / b:.2f}" for kind, a, b in both)
    return f"{name}: {items} items; an item, naive and together: {'; '.join(sides)}"


def main(clips: int = 5, level: int = 3) -> None:
    """Prints the seconds of each video, and of all."""
    total, count = np.zeros((2, 2)), 0
    for name, items, *seconds in measure(clips, level):
        print(_told(f"{name}, {items[0].duration:g} s", len(items), *seconds), flush=True)
        total, count = total + seconds, count + len(items)
    print(_told("all, the same texts", count, *total))


if __name__ == "__main__":
    shell.use_compilation_cache()
    main(*map(int, sys.argv[1:]))
