"""What becomes of an answer when the model itself names something else than what is asked for: a search goes
on, and where nothing else is left, the answer is that it never appears.

Relevance from afar finds what is alike. Only who looks closely tells a red star from a red circle.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

from o3jax.inference.coarse import EVERY_S
from o3jax.inference.respond import Request, Response
from o3jax.metrics.boxes import box_iou
from o3jax.notes import Note
from o3jax.prompts import grammar
from o3jax.prompts.clock import named_times
from o3jax.prompts.mentions import claim_numbers
from o3jax.verify.signals import asks
from o3jax.verify.verdict import OVERLAP
from o3jax.video import Clip

_TRIES = 8  # readings of one question, at most
_NAME = 60  # characters of one that are told

_TOKENS = re.compile(r"[^\W_\u4e00-\u9fff]+|[\u4e00-\u9fff]")
# What a question says beside the thing that it asks for.
_ASKING = re.compile(
    r"\b(?:when|what|which|where|time|times|second|interval|is|are|was|were|do|does|did|can|could|be|been|seen|see"
    r"|visible|shown|appears?|appeared|come|comes|into|view|on|screen|first|last|disappears?|during|from|to|in|at"
    r"|of|for|and|or|the|a|an|it|this|that|video|there|long|how|many|colou?r|shape|kind|objects?|things?)\b"
    r"|什么时候|何时|哪个|哪一个|在?第几秒|时间段|视频|可见|出现|消失|看到|什么|颜色|形状|物体|第[一二三]次|最?[先后]"
    r"|[的是在从到能里中和与或]"
)
_SEVERAL = re.compile(r"\b(?:or|and)\b|还是|[和与或]")


def search_on(
    respond: Callable[[list[Request]], list[Response]],
    request: Request,
    clip: Clip,
    response: Response,
    language: str,
    exact_names: bool,
) -> tuple[Response, Request, Clip]:
    """Returns the response that names what is asked for, and what was read for it.

    That of the first reading, if none does; if the question asks when something is seen and nothing that is
    relevant is left, one that says that it never appears.

    Args:
        respond: answers requests, as `Model.respond`.
        response: to the request as it was read first.
        language: "en" or "zh", of what is said in place of the model.
        exact_names: whether another name is another thing to the model. Else nothing follows from names.
    """
    begun, found, question = (response, request, clip), request.search, request.question
    if found is None or named_times(question):  # there it is as it is
        return begun
    is_when = asks(question) == "when"
    if found.uniform:
        # What the model says of frames so far apart is a guess.
        is_guess = found.passes[-1].every_s > EVERY_S and not found.lost
        return (_never(response, found.why, language), request, clip) if is_when and is_guess else begun
    others = first = named_otherwise(response, question) if exact_names else None
    if not first:
        return begun
    is_certain = True
    for _ in range(_TRIES):
        following = request.further and request.further([t for _, t in others or () if t is not None])
        if not following:
            break
        request, clip = following
        (response,) = respond([request])
        others = named_otherwise(response, question)
        if others == []:
            return response, request, clip
        is_certain &= others is not None
    response = dataclasses.replace(begun[0], search=request.search)
    if is_certain and is_when and not request.search.unread and not request.search.lost:
        name, time_s = first[0]
        response = _never(response, Note("never named", time_s or 0.0, name[:_NAME]), language)
    return response, *begun[1:]


def named_otherwise(response: Response, question: str) -> list[tuple[str, float | None]] | None:
    """Returns name and seconds of each thing that a response claims, if none of them is what is asked for.

    None where that cannot be told. A name is believed where the text and the evidence decoder agree on the
    box: where they do not, the model hardly sees what it names. Of several things that a question names, one
    is the answer, whatever the model sees.
    """
    claims = [claim for claim in grammar.parse(response.text).claims if claim.object]
    if not all(is_another(claim.object, question) for claim in claims):
        return []
    if _SEVERAL.search(question):
        return [(claim.object, claim.time_s) for claim in claims] or None
    numbers = claim_numbers(response.text, [claim.span for claim in claims])
    for claim, number in zip(claims, numbers, strict=True):
        estimate = response.estimates[number] if number < len(response.estimates) else None
        if not estimate or not claim.box or box_iou(claim.box, estimate.box) < OVERLAP:
            return None
    return [(claim.object, claim.time_s) for claim in claims] or None


def is_another(name: str, question: str) -> bool:
    """Returns whether a name is of something else than what a question names, which is alike.

    They share words, or Chinese characters, and each has some that the other has not: "person" is no other
    than "worker", nor is "man in blue" than "man". Where a question names several things, it is one of them.
    """
    name, question = name.casefold(), question.casefold()
    if "".join(name.split()) in "".join(question.split()):
        return False
    own, asked = ({*_TOKENS.findall(_ASKING.sub(" ", text))} for text in (name, question))
    if _SEVERAL.search(question):
        return bool(own and asked - own)
    return bool(own & asked and own - asked and asked - own)


def _never(response: Response, why: Note, language: str) -> Response:
    text = f"<answer>{Note('never').text(language)}</answer>"
    return dataclasses.replace(response, text=text, estimates=(), never=why)
