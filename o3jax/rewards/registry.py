"""Reward functions by name: (completion, sample) -> a number, or a dictionary of terms.

A sample is a record in the published format with, beside its fields, `duration` in seconds and `evidence`, a
list of {"object", "time", "box"} with normalised boxes; time and box may be None. `box_space` says how
completions write boxes (`records.written_space`).

A reward of one's own is named "package.module:function". The dictionary that it returns may have a "total";
otherwise the total is the sum of its terms. Beside its options it may name these parameters, and is then
given them: `step_percent`, the share of the training that is over, and `evidence`, the estimates of the
evidence modules for this completion (a list of `o3jax.grounding.Grounding`).
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from o3jax.errors import UserError

Reward = Callable[..., float | Mapping[str, float]]

# As names, so that only the reward in use is imported.
REWARDS: dict[str, str | Reward] = {
    "format": "o3jax.rewards.open_o3:format_term",
    "open_o3": "o3jax.rewards.open_o3:score",
    "open_o3_paper": "o3jax.rewards.open_o3:score_paper",
    "article": "o3jax.rewards.article:score",
    "article_literal": "o3jax.rewards.article:score_literal",
    "overlap": "o3jax.rewards.overlap:score",
}


def load(name: str) -> Reward:
    """Returns the reward function of this name.

    Raises:
        UserError: if there is none, it cannot be imported, or is no function.
    """
    place = REWARDS.get(name, name)
    if callable(place):
        return place
    module, colon, attribute = place.partition(":")
    if not (module and colon and attribute):
        raise UserError(
            f"reward {name!r:.80} is unknown; use one of {', '.join(REWARDS)}, or your own as "
            "package.module:function"
        )
    try:
        found: Any = importlib.import_module(module)
    except (Exception, SystemExit) as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise UserError(
            f"reward {name!r:.200}: importing {module!r:.100} failed ({said}); mend the module or the name"
        ) from error
    for part in attribute.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        wrong = "has no such function" if found is None else "has no function, but other things, of that name"
        raise UserError(f"reward {name!r:.200}: module {module!r:.100} {wrong}; correct the name")
    return found


def parameters(reward: Reward) -> set[str]:
    """Returns the names of what a reward takes beside the completion and the sample."""
    return {p.name for p in _signature(reward)[2:] if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _signature(reward: Reward) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(reward).parameters.values())
    except ValueError:  # of a function in C
        return []


def prepare(name: str, options: Mapping[str, Any] | None = None) -> Callable[..., dict[str, float]]:
    """Returns the named reward as a function (completion, sample, **context) -> terms, with their "total".

    Args:
        options: keyword arguments of the reward, the same for all completions.

    Raises:
        UserError: if the reward cannot be had or has no such option; when called, if what it returns are no
            finite numbers.
    """
    reward, options = load(name), dict(options or {})
    named = parameters(reward)
    anything = any(p.kind is p.VAR_KEYWORD for p in _signature(reward))
    if unknown := [option for option in options if option not in named and not anything]:
        has = ", ".join(sorted(named)) or "none"
        raise UserError(f"reward {name!r:.200} has no option {unknown[0]!r:.80}; it has {has}")

    def evaluate(completion: str, sample: Mapping[str, Any], **context: Any) -> dict[str, float]:
        wanted = {key: value for key, value in context.items() if key in named and key not in options}
        return _terms(reward(completion, sample, **options, **wanted))

    return evaluate


def total(reward: str, completion: str, sample: Mapping[str, Any]) -> float:
    """Returns what a completion is worth by the named reward function.

    Raises:
        UserError: as `prepare`.
    """
    return prepare(reward)(completion, sample)["total"]


def _terms(score: Any) -> dict[str, float]:
    """Returns the terms as floats, with their total; UserError where one is no finite number."""
    terms = {}
    for name, value in (score if isinstance(score, Mapping) else {"total": score}).items():
        try:
            number = math.nan if isinstance(value, str | bytes) else float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise UserError(f"the reward's {name!s:.80} is {value!r:.80}, which is no finite number")
        terms[str(name)] = number
    return terms if "total" in terms else terms | {"total": math.fsum(terms.values())}
