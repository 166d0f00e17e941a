"""Several answers to one question -> one: by majority, or weighted by what each rests on."""

from __future__ import annotations

import re
from collections.abc import Sequence

from o3jax.verify.signals import sameness

_SAME = 0.5
_EVIDENCE = {"0": 0.2, "1": 0.6, "2": 1.0}  # of the published voting


def vote(answers: Sequence[str], weights: Sequence[float] | None = None) -> int:
    """Returns the index of the answer that the votes choose; of those that say the same, the heaviest one.

    Answers that mostly say the same (see `signals.sameness`) are one choice: the first that was given decides
    which. The choice with the largest sum of weights wins, of equal ones the first.

    Args:
        weights: of each vote, not negative; None: a vote counts one.
    """
    weights = [1.0] * len(answers) if weights is None else weights
    choices: list[list[int]] = []
    for number, answer in enumerate(answers):
        for choice in choices:
            if sameness(answers[choice[0]], answer) >= _SAME:
                choice.append(number)
                break
        else:
            choices.append([number])
    won = max(choices, key=lambda choice: sum(weights[number] for number in choice))
    return max(won, key=lambda number: weights[number])


def evidence_weight(reply: str) -> float:
    """Returns the weight of a vote from what the model says of its evidence: 0.2, 0.6 or 1.0 for exactly 0, 1
    or 2, and 0.2 for anything else (Open-o3 Video, confidence-aware voting, as its code has it)."""
    return _EVIDENCE.get(reply.strip(), 0.2)


def evidence_prompt(question: str) -> tuple[str, str]:
    """Returns the system prompt and the text that ask how related crops are to a question, as published."""
    return (
        "You are a helpful assistant. Only reply with a single digit: 0, 1, or 2.",
        "You will be given a video question and a set of cropped images extracted from the video.\n"
        "Score how related these images are to answering the question.\n\n"
        "Scoring rules:\n"
        "2 = clearly relevant to answering the question\n"
        "1 = might be useful but uncertain\n"
        "0 = not relevant at all\n\n"
        "Only output one of: 0, 1, or 2. No other text.\n"
        f"Question: {question}\n",
    )


# One object, one box, one time: what the published voting crops.
CROPPED = re.compile(r"<obj>([^<]*)</obj><box>(\[[^<]*\])</box>at<t>([^<]*)</t>s")
MOST_CROPS = 10  # with more it takes none
