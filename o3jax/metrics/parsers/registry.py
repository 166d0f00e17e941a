"""The parsers by benchmark and name, and `parse`, which calls one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from o3jax.errors import UserError
from o3jax.metrics.parsers import boxes, choice, intervals, words
from o3jax.metrics.parsers.text import answer_part

PARSERS = ("official", "lmms", "o3")

# What is asked for -> a parser for each name; `lmms` is left out where lmms-eval has no other one.
Part = Mapping[str, Callable[..., Any]]


def _interval(official: Callable[[str], Any], lmms: Callable[[str], Any] | None = None) -> Mapping[str, Part]:
    return {"interval": {"official": official, "lmms": lmms or official, "o3": intervals.o3}}


def _letter(official: Callable[..., Any], lmms: Callable[..., Any] | None = None) -> Mapping[str, Part]:
    return {"letter": {"official": official, "lmms": lmms or official, "o3": choice.o3}}


_BOTH = _interval(intervals.o3) | _letter(
    choice.o3
)  # predictions are submitted as numbers: nothing published
BENCHMARKS: dict[str, Mapping[str, Part]] = {
    "vstar": {
        **_interval(intervals.vstar),
        "boxes": {"official": boxes.vstar, "o3": boxes.o3},
        "answer": {"official": answer_part, "o3": answer_part},
    },
    "videozerobench": {
        "interval": {"official": intervals.videozerobench, "o3": intervals.o3_windows},
        "boxes": {"official": boxes.videozerobench, "o3": boxes.o3},
        "answer": {"official": words.videozerobench, "o3": words.o3},
    },
    "tvgbench": _interval(intervals.time_r1),
    "activitynet": _interval(intervals.time_r1),
    "charades_sta": _interval(intervals.charades),
    "timelens_charades": _interval(intervals.timelens, intervals.timelens_lmms),
    "timelens_activitynet": _interval(intervals.timelens, intervals.timelens_lmms),
    "timelens_qvhighlights": _interval(intervals.timelens, intervals.timelens_lmms),
    "extremewhenbench": _interval(intervals.extremewhen),
    "rextime": _BOTH,
    "nextgqa": _BOTH,
    "videomme": _letter(choice.first_letter, choice.lmms),
    "videomme_v2": _letter(choice.first_letter_v2),
    "worldsense": _letter(choice.first_letter, choice.worldsense_lmms),
    "videommmu": {"answer": {"official": words.mmmu_open, "o3": words.o3}, **_letter(choice.lmms)},
    "longvideo_reason": {
        "answer": {"official": words.longvideo_reason, "o3": words.o3},
        "letter": {"official": choice.exact, "o3": choice.o3},
    },
}


def parse(
    benchmark: str, text: str, parser: str = "official", options: Sequence[str] = (), part: str | None = None
) -> Any:
    """Returns what a model's text answers to a question of a benchmark, or None.

    A letter; (start, end) in seconds, for VideoZeroBench a list of them; boxes as [{"time": seconds, "boxes":
    [[x1, y1, x2, y2], ...]}, ...] as they are written; or an answer in words. In linear time for any text.

    Args:
        benchmark: a name of `BENCHMARKS`.
        text: everything that the model printed.
        parser: "official" (as published), "lmms" (as lmms-eval has it, where that differs) or "o3" (ours,
            which guesses nothing and knows this project's tags).
        options: the texts of the options, with or without their letters.
        part: "letter", "interval", "boxes" or "answer". By default a letter where there are options, boxes
            where the answer is JSON, else the first that the benchmark has.

    Raises:
        UserError: if benchmark, parser or part is unknown.
    """
    if benchmark not in BENCHMARKS:
        raise UserError(f"benchmark {benchmark!r:.80} has no parser; use one of {', '.join(BENCHMARKS)}")
    if parser not in PARSERS:
        raise UserError(f"parser {parser!r:.80} is unknown; use one of {', '.join(PARSERS)}")
    parts = BENCHMARKS[benchmark]
    name = part or _part(parts, text, options)
    if name not in parts:
        raise UserError(f"{benchmark} has no part {name!r:.80}; it has {', '.join(parts)}")
    read = parts[name].get(parser, parts[name]["official"])
    return read(text, options) if name == "letter" else read(text)


def _part(parts: Mapping[str, Part], text: str, options: Sequence[str]) -> str:
    if options and "letter" in parts:
        return "letter"
    if "boxes" in parts and answer_part(text).lstrip("`json \n")[:1] in ("[", "{"):
        return "boxes"
    return next(iter(parts))
