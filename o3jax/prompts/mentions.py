"""Mentions of evidence in a response: which token stands for each, and which annotation each one means."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from o3jax.grounding import Grounding
from o3jax.prompts.tokenizer import Tokenizer

CLOSE = "</obj>"
_LAST = CLOSE.index("obj") + 2  # the last character of `obj`: from its token on, the name is complete

# Costs of a pairing, in seconds of time error.
_UNKNOWN_TIME = 1e5  # only one of the two has a time
_OTHER_NAME = 1e9  # never a pair
_ORDER = 1e-6  # per place moved; decides between equals


def mention_positions(tokenizer: Tokenizer, ids: Iterable[int]) -> list[int]:
    """Returns for each `</obj>` of a response the index of the token that holds its `obj`.

    The closing `>` may merge with what follows, so its token differs with the context; `obj` is
    complete at this one whatever comes after it. Found from the ids alone, which need not be those
    that the tokenizer would choose for the text. Where `obj` is split, the token of its last letter.

    Args:
        tokenizer: a byte-level tokenizer, as Qwen's is.
        ids: tokens of the response; a prompt may hold `</obj>` as an example.
    """
    # Token by token, a split character becomes replacement characters. The tag is ASCII, of which no
    # part is ever inside another character, so it is found all the same.
    ids = [int(i) for i in ids]
    pieces = {i: tokenizer.decode([i]) for i in set(ids)}
    texts = [pieces[i] for i in ids]
    ends = list(itertools.accumulate(map(len, texts)))
    text = "".join(texts)
    found, at = [], text.find(CLOSE)
    while at >= 0:
        found.append(bisect.bisect_right(ends, at + _LAST))
        at = text.find(CLOSE, at + len(CLOSE))
    return found


def claim_numbers(text: str, spans: Iterable[tuple[int, int]]) -> list[int]:
    """Returns which `</obj>` of `text` closes each claim, counted from 0 as `mention_positions` does.

    The two differ where a tag stands alone or a name is empty: such a tag makes no claim.

    Args:
        text: what `o3jax.prompts.grammar.parse` read.
        spans: the claims' `span`, in order.
    """
    numbers, count, at = [], 0, 0
    for start, _ in spans:
        count += text.count(CLOSE, at, start)
        numbers.append(count)
        at = start
    return numbers


def match_mentions(claims: Sequence[Grounding], truth: Sequence[Grounding]) -> list[int]:
    """Returns for each mention of a text the index of the annotation that it means, -1 for none.

    In order where the names agree one by one. Otherwise the one-to-one pairing of equal names with
    most pairs and, among those, with the least time error in all (Hungarian method); a mention
    without a time pairs with one that has a time only if nothing better is left.
    """
    from scipy.optimize import linear_sum_assignment  # half a second that asking a question does not need

    said, meant = ([" ".join(m.object.casefold().split()) for m in side] for side in (claims, truth))
    if said == meant:
        return list(range(len(said)))
    cost = np.array(
        [
            [
                _ORDER * abs(i - j) + (_time_cost(a.time_s, b.time_s) if said[i] == meant[j] else _OTHER_NAME)
                for j, b in enumerate(truth)
            ]
            for i, a in enumerate(claims)
        ]
    ).reshape(len(said), len(meant))
    matched = [-1] * len(said)
    for i, j in zip(*linear_sum_assignment(cost), strict=True):
        if said[i] == meant[j]:
            matched[i] = int(j)
    return matched


def _time_cost(a: float | None, b: float | None) -> float:
    if a is None or b is None:
        return 0.0 if a is b else _UNKNOWN_TIME
    return min(abs(a - b), _UNKNOWN_TIME)
