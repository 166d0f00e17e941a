"""Why a person should check a response, as far as its text shows it, however probable its tokens were."""

from __future__ import annotations

import re

import numpy as np

from o3jax.notes import Note
from o3jax.prompts import coords, grammar

MOST = 0.59  # confidence of a response that there is a reason to check; below `confidence.MEDIUM`

_PERIOD = 400  # characters, the longest piece whose repetition is looked for
_TIMES, _LEAST = 4, 40  # a loop is at least so often the same, one after the other, and so many characters
_COUNTED = 8  # times that a loop is there in which only numbers change, all by the same step
_LOOPS = 8  # that are taken out of one text
_NUMBER, _DECIMALS = re.compile(r"\d{1,12}(?:\.\d{1,4})?"), 1e4
_LONG = 600  # characters of what stands for an answer where there is none
_OPTION = re.compile(r"(?:^|(?<=[\s(（,，;；。.?？:：]))([A-Z])[.)）:：、．]")
_CHOICE = re.compile(
    r"\W*+(?:(?:the )?(?:answer|option)(?: is)?|答案(?:是|为)?|选项?)?+\W*+([A-Z])(?![A-Za-z])", re.IGNORECASE
)
_AROUND = " \n\t.,;?!()。，；？！（）、"  # an option's words
_TIME_STEP = 0.1  # seconds, to which a text writes times


def reasons(
    text: str, question: str, duration_s: float, tokens: int, finished: bool = True
) -> tuple[Note, ...]:
    """Returns why a person should check a response; nothing where its text shows no fault. Linear time.

    Args:
        text: the whole response, see `grammar.whole`.
        question: may list options, `A. red B. blue`.
        duration_s: of the video.
        tokens: how many were generated.
        finished: whether the model ended it itself.
    """
    parsed, found = grammar.parse(text), []
    if not finished:
        found.append(Note("tokens", tokens))
    answers = text.count("<answer>")
    if not answers:
        found.append(Note("no answer"))
    elif not re.sub(r"<[^<>]*>|[\W_]", "", parsed.answer):
        found.append(Note("empty answer"))
    elif finished and "</answer>" not in text:
        found.append(Note("open answer"))
    if answers > 1:
        found.append(Note("answers", answers))
    if _loop(text):
        found.append(Note("loop"))
    if unreadable := _unreadable(text, parsed):
        found.append(Note("unreadable", unreadable))
    if outside := sum(claim.time_s is not None and claim.time_s > duration_s for claim in parsed.claims):
        found.append(Note("claims outside", outside))
    elif any(time > duration_s + _TIME_STEP for time in parsed.times):
        found.append(Note("times outside"))
    if answers and parsed.answer and _no_option(parsed.answer, question):
        found.append(Note("no option"))
    return tuple(found)


def answer_and_reasoning(text: str) -> tuple[str, str]:
    """Returns what people are shown of a response as its answer and as its reasoning, tags included.

    Where there is no answer, the beginning of what was said stands for it, and nothing is said twice. What is
    repeated again and again is shown twice.
    """
    parsed = grammar.parse(text)
    answer, think = without_loops(parsed.answer), without_loops(parsed.think)
    if not answer:
        answer, think = think or without_loops(text.strip()), ""
    if "<answer>" not in text and len(answer) > _LONG:
        answer = answer[:_LONG] + "…"
    return answer, "" if think == answer else think


def without_loops(text: str) -> str:
    """Returns the text with what repeats itself again and again there twice, and `…`."""
    for _ in range(_LOOPS):
        if (loop := _loop(text)) is None:
            break
        second, end = loop
        text = f"{text[:second]}…{text[end:]}"
    return text


def _loop(text: str) -> tuple[int, int] | None:
    """Returns where the second repetition ends, and the last, of the longest stretch of a text that only
    repeats itself, or only counts."""
    codes = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32)
    if loop := _longest(codes, np.zeros(len(codes), int), _TIMES):
        start, end, period = loop
        return start + 2 * period, end
    numbers = list(_NUMBER.finditer(text))
    if len(numbers) < _COUNTED:
        return None
    # Each number is one place, and equal to every other.
    first = np.ones(len(codes) + 1, bool)
    for number in numbers:
        first[number.start() + 1 : number.end()] = False
    starts, at = np.flatnonzero(first), np.array([number.start() for number in numbers])
    codes, values = codes.copy(), np.zeros(len(codes))
    codes[at] = ord("0")
    values[at] = [round(float(number[0]) * _DECIMALS) for number in numbers]
    loop = _longest(codes[starts[:-1]], values[starts[:-1]], _COUNTED)
    if loop is None:
        return None
    start, end, period = loop
    return int(starts[start + 2 * period]), int(starts[end])


def _longest(codes: np.ndarray, values: np.ndarray, times: int) -> tuple[int, int, int] | None:
    """Returns start, end and period of the longest stretch in which codes repeat so often, and values stay or
    move by one step, the same everywhere."""
    best = None
    for period in range(1, min(_PERIOD, len(codes) // times) + 1):
        same = np.concatenate([[False], codes[period:] == codes[:-period], [False]])
        step = values[period:] - values[:-period]
        moved = np.flatnonzero(np.where(same[1:-1], step, 0))
        # A stretch ends before the first value that moves by another step than the one that moved before it.
        same[1 + moved[1:][np.diff(step[moved]) != 0]] = False
        edges = np.flatnonzero(same[1:] != same[:-1])
        if not len(edges):
            continue
        lengths = edges[1::2] - edges[::2] + period
        at = int(lengths.argmax())
        long = max(_LEAST, times * period, best[1] - best[0] + 1 if best else 0)
        if lengths[at] >= long:
            best = int(edges[2 * at]), int(edges[2 * at] + lengths[at]), period
    return best


def _unreadable(text: str, parsed: grammar.Parsed) -> int:
    """Returns how many objects, boxes and times of a text cannot be read."""
    boxes = [box for box in coords.boxes_in(text) if _is_box(box)]
    claimed = sum(len(claim.boxes) for claim in parsed.claims)
    tags = {tag: max(text.count(f"<{tag}>"), text.count(f"</{tag}>")) for tag in ("obj", "box", "t")}
    lost = tags["obj"] - len(parsed.claims)
    lost += tags["box"] - min(len(boxes), claimed)
    return lost + tags["t"] - len(parsed.times)


def _is_box(box: coords.Box) -> bool:
    x1, y1, x2, y2 = box
    space = coords.PER_MILLE
    return 0 <= x1 < x2 <= space.width and 0 <= y1 < y2 <= space.height


def _no_option(answer: str, question: str) -> bool:
    """Whether the question lists options, and the answer is none of them, neither by letter nor by words."""
    listed = []
    for label in _OPTION.finditer(question):
        if label[1] == chr(ord("A") + len(listed)):
            listed.append(label)
    if len(listed) < 2:
        return False
    said = _CHOICE.match(answer)
    if said and said[1].upper() in {label[1] for label in listed}:
        return False
    ends = [label.start() for label in listed[1:]] + [len(question)]
    options = [question[label.end() : end].strip(_AROUND) for label, end in zip(listed, ends, strict=True)]
    return not any(option and option.casefold() in answer.casefold() for option in options)
