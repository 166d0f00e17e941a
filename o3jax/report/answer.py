"""The answer to a question about a video, with its evidence: as data, as JSON and as printed text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from typing import Any

from o3jax.files import json_text
from o3jax.grounding import Grounding, Interval
from o3jax.printing import printable
from o3jax.searched import Search
from o3jax.verify import confidence
from o3jax.verify.risk import Bound
from o3jax.verify.verdict import CALIBRATED, UNCALIBRATED

Box = tuple[float, float, float, float]

_CJK = re.compile("[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f]")
# No quantifier can give anything back, so that any text takes linear time.
_TAGGED = re.compile(
    r"<obj>(?P<object>[^<]*+)</obj>(?:\s*+<box>[^<]*+</box>)*+(?:\s*+at\s*+<t>(?P<at>[^<]*+)</t>(?:s(?![a-z])|秒)?+)?+"
    r"|<t>(?P<time>[^<]*+)</t>(?:\s?+(?:s(?![a-z])|秒))?+"
    r"|<box>[^<]*+</box>"
    r"|</?(?:obj|box|t|think|answer)>"
)
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{0,9})?", re.ASCII)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evidence(Grounding):
    """One thing that the answer rests on: what, when and where in this video.

    The evidence decoder's estimate, with the text's own beside it; the text's where the model has no
    evidence modules (`text` is None). The confidence is the decoder's, or the mean probability of the
    claim's tokens; the interval is the decoder's.
    """

    frame: int  # floor(time_s * fps + 0.5)
    box_px: tuple[int, int, int, int] | None = None  # the first box in pixels of the original video
    spread_s: float | None = None  # standard deviation of the decoder's time
    text: Evidence | None = None  # what the text states of the same thing

    def to_dict(self) -> dict[str, Any]:
        """Returns what the answer's JSON holds of it."""
        record = {"object": self.object, **self._place(), "confidence": self.confidence}
        record |= {"spread_s": self.spread_s, "interval": self.interval}
        return record | {"text": self.text and self.text._place()}

    def _place(self) -> dict[str, Any]:
        return {"time_s": self.time_s, "frame": self.frame, "box_px": self.box_px, "box": self.box}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one question about one video."""

    question: str
    text: str  # the answer for people, without tags
    evidence: tuple[Evidence, ...] = ()
    intervals: tuple[Interval, ...] = ()  # seconds that the answer names
    confidence: float
    confidence_kind: str = UNCALIBRATED  # what the number is
    # In its language: of a calibrated confidence what it rests on, what speaks against the answer first; of
    # another why a person should check it whatever its confidence.
    reasons: tuple[str, ...] = ()
    bound: Bound | None = None  # what is promised of answers as sure as this
    relevance: tuple[tuple[float, float], ...] = ()  # (seconds, probability of being evidence)
    candidates: tuple[Interval, ...] = ()  # seconds that were searched for it
    search: Search | None = None  # how a video was searched that is too long to be read whole
    reasoning: str = ""  # as generated, with its tags
    raw: str = ""  # everything the model generated
    video: dict[str, Any] = dataclasses.field(default_factory=dict)
    # path, size [width, height], duration_s, fps (of the frame numbers), status, notes (list of str)
    model: str = ""

    @property
    def language(self) -> str:
        """The language of the question, "en" or "zh"."""
        return question_language(self.question)

    @property
    def calibrated(self) -> bool:
        """Whether the confidence is the share of such answers that is right."""
        return self.confidence_kind == CALIBRATED

    @property
    def label(self) -> str:
        """The confidence in a word: "high" (>= 0.8), "medium" (>= 0.6), or "low" as whatever needs review."""
        return "low" if self.needs_review else confidence.label(self.confidence)

    @property
    def needs_review(self) -> bool:
        """Whether a person should check the answer: its confidence is below 0.6, or is not calibrated and
        there are reasons."""
        return confidence.needs_review(self.confidence) or (bool(self.reasons) and not self.calibrated)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field, and `language`, `label`, `calibrated` and `needs_review`, as JSON types."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"evidence": [item.to_dict() for item in self.evidence]}
        fields |= {"bound": self.bound and dataclasses.asdict(self.bound), "calibrated": self.calibrated}
        fields |= {"search": self.search and self.search.to_dict()}
        fields |= {"language": self.language, "label": self.label, "needs_review": self.needs_review}
        return json.loads(json.dumps(fields))

    def to_json(self) -> str:
        """Returns `to_dict()` as indented JSON text; bytes of a file's name that are no UTF-8 become ?."""
        text = json_text(self.to_dict(), indent=2)
        return text.encode(errors="replace").decode()


def question_language(question: str) -> str:
    """Returns "zh" if the question contains a Chinese character, else "en"."""
    return "zh" if _CJK.search(question) else "en"


# How an answer is printed: the answer; evidence or none, the decoder's or the text's, a time, a box; the
# confidence, whether and why to check it, what else it rests on, and what is promised of it.
_PRINTED = {
    "en": (
        *("Answer: {}", "Evidence:", "Evidence: none", "- time ", "  the text says: time "),
        *("{:.1f} s (frame {})", ", box {}", "Confidence: {} ({})", " needs review", "Check: {}", "; "),
        *(
            "Because: {}",
            "Of answers as sure ({:.0%} of all) at most {:.0%} are wrong, with {:.0%} certainty",
        ),
    ),
    "zh": (
        *("答案:{}", "证据:", "证据:无", "- 时间戳:", "  文本所述:"),
        *("{:.1f}秒(对应第{}帧)", ",边界框:{}", "置信度:{}({})", " 需人工核实", "核实原因:{}", ";"),
        *("依据:{}", "同样把握的答案(占全部的{:.0%})中至多{:.0%}是错的,此结论有{:.0%}的把握"),
    ),
}


def format_answer(answer: Answer) -> str:
    """Returns the printed form: the answer, a line for each piece of evidence, the confidence.

    Chinese for a Chinese question, else English. Control characters that a model may have put into
    its answer are left out, so that nothing but text reaches a terminal.
    """
    said, evidence, none, own, stated, when, where, sure, review, *why = _PRINTED[answer.language]
    check, joint, because, promise = why

    def place(item: Evidence) -> str:
        box = where.format(_corners(item.box_px)) if item.box_px else ""
        return when.format(item.time_s, item.frame) + box

    text = printable(answer.text, keep="\n").strip()
    lines = [said.format(text), evidence if answer.evidence else none]
    for item in answer.evidence:
        lines.append(own + place(item))
        if item.text:
            lines.append(stated + place(item.text))
    label = confidence.LABELS[answer.language][answer.label]
    lines.append(sure.format(confidence.format_confidence(answer.confidence), label))
    if answer.needs_review:
        lines[-1] += review
    if answer.search:
        lines.append(answer.search.text(answer.language))
    if answer.reasons:
        lines.append((check if answer.needs_review else because).format(joint.join(answer.reasons)))
    if answer.bound and not answer.needs_review:
        bound = answer.bound
        lines.append(promise.format(bound.coverage, bound.rate, bound.certainty))
    return "\n".join(lines)


def _corners(box: tuple[int, int, int, int]) -> str:
    return "(x1={}, y1={}, x2={}, y2={})".format(*box)


@dataclasses.dataclass(frozen=True)
class Segment:
    """A piece of generated text: plain, or a mention of an object and/or a time."""

    text: str  # the plain text, or the object's name; empty for a bare time
    time_s: float | None = None
    is_object: bool = False


def segments(text: str) -> Iterator[Segment]:
    """Yields the pieces of generated text in order, its tags taken out; linear time for any text."""
    end = 0
    for match in _TAGGED.finditer(text):
        if match.start() > end:
            yield Segment(text[end : match.start()])
        end = match.end()
        name, stamp = match["object"], match["at"] or match["time"] or ""
        number = _SECONDS.fullmatch(stamp.strip())
        time_s = float(number.group()) if number else None
        if name is not None:
            yield Segment(name.strip(), time_s, is_object=True)
        elif time_s is not None:
            yield Segment("", time_s)
        elif stamp:
            yield Segment(stamp)
    if end < len(text):
        yield Segment(text[end:])


def plain_text(text: str, language: str) -> str:
    """Returns generated text for people: tags and boxes out, times as `12.3 s` (`12.3秒` for "zh")."""
    parts = []
    for segment in segments(text):
        seconds = "" if segment.time_s is None else format_time(segment.time_s, language)
        parts.append(f"{segment.text} ({seconds})" if segment.text and seconds else segment.text or seconds)
    return "".join(parts).strip()


def format_time(time_s: float, language: str) -> str:
    """Returns `12.3 s`, or `12.3秒` for "zh"."""
    return f"{time_s:.1f}秒" if language == "zh" else f"{time_s:.1f} s"
