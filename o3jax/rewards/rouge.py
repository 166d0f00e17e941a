"""How much of a free-form answer agrees with the truth: ROUGE, by the package of the published code."""

from __future__ import annotations

import functools
import re

from nltk.stem import porter
from rouge_score import rouge_scorer

# The published completions have at most 768 tokens. What is longer is judged by its beginning: the longest
# common subsequence takes time for each pair of words.
MAX_CHARACTERS = 8192
MAX_WORDS = 1024
_LONGEST_STEMMED = 64  # characters; no word is longer, and the stemmer need not be fast on what is none

_ENGLISH = re.compile(r"[a-z0-9]+")
_BOTH = re.compile(r"[a-z0-9]+|[\u3400-\u4dbf\u4e00-\u9fff]")

_stem = functools.lru_cache(maxsize=4096)(porter.PorterStemmer().stem)


class _Words:
    """The words of the scorer's own tokenizer, as many as are judged and, on demand, Chinese characters."""

    def __init__(self, pattern: re.Pattern[str]):
        self._pattern = pattern

    def tokenize(self, text: str) -> list[str]:
        words = self._pattern.findall(text[:MAX_CHARACTERS].lower())[:MAX_WORDS]
        return [_stem(word) if 3 < len(word) <= _LONGEST_STEMMED else word for word in words]


_TYPES = ["rouge1", "rouge2", "rougeL"]
_SCORERS = {
    chinese: rouge_scorer.RougeScorer(_TYPES, tokenizer=_Words(_BOTH if chinese else _ENGLISH))
    for chinese in (False, True)
}


def rouge(answer: str, truth: str, chinese: bool = False) -> float:
    """Returns the mean F-measure of ROUGE-1, ROUGE-2 and ROUGE-L with stemmed words, in [0, 1].

    Of both texts the first 8,192 characters and 1,024 words count, so that no text takes long. A text of one
    word has no pair of words, hence no ROUGE-2: the right word scores 2/3, as published.

    Args:
        chinese: every Chinese character is a word. The published score ignores all but ASCII.
    """
    scores = _SCORERS[chinese].score(truth, answer)
    return min(max(sum(scores[kind].fmeasure for kind in _TYPES) / len(_TYPES), 0.0), 1.0)
