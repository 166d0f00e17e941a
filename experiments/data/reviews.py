"""`experiments.data from-reviews`: what people said of answers, as a data set to train on.

Below DIR: `NAME.review.json` beside the answer's `NAME.json` (as `ask --json` and the server write it), and
`reviews.json` in the folder of a run of `watch` or `label` (as its page saves it).
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_pipelines.formats import stgr
from data_pipelines.formats.fields import save_records
from data_pipelines.formats.sample import Candidate, Sample
from experiments.cli import terminal
from experiments.library.records import RunFolder
from o3jax.errors import UserError
from o3jax.files import check_new_folder, read_json, whole_folder
from o3jax.grounding import Grounding
from o3jax.prompts import coords, grammar
from o3jax.report.answer import question_language
from o3jax.report.moments import Moment
from o3jax.report.review import SUFFIX, Review, from_dict, read_review
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL
from o3jax.video import probe

_SECONDS = re.compile(r"(?<![\d.<>])(\d{1,6}(?:\.\d{1,3})?) ?(?:s\b|秒)")  # as `plain_text` writes them


@dataclasses.dataclass(frozen=True)
class Reviewed:
    """An answer that somebody looked at."""

    video: str
    question: str
    said: Candidate  # by the model
    review: Review


def from_reviews(folder: str, out: str | None) -> None:
    """Writes the data set of all reviews below a folder, and prints how they turned out."""
    if not out:
        raise UserError("--out is missing: name the folder of the new data set")
    check_new_folder(out)
    found = list(find(Path(folder)))
    if not found:
        raise UserError(f"{folder} holds no reviews: save some beside the answers, from a report or a page")
    samples: dict[str, Sample] = {}
    sources: dict[str, str] = {}
    for one in found:
        if (sample := _sample(one)) is not None:
            samples[sample.id] = sample
            sources[sample.video_path] = one.video
    if not samples:
        raise UserError(
            f"{folder}: none of {len(found)} reviews says what is right: mark some right, or fix them"
        )
    with whole_folder(out) as temporary:
        for path, source in sources.items():
            target = Path(temporary) / path
            target.parent.mkdir(exist_ok=True)
            try:
                os.link(source, target)
            except OSError:  # another file system, or one without hard links
                shutil.copy2(source, target)
        save_records(Path(temporary) / "stgr.json", [stgr.to_stgr(sample) for sample in samples.values()])
    counts = Counter(one.review.verdict for one in found)
    console = terminal.console(soft_wrap=True, highlight=False)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in sorted(counts))
    console.print(f"{out}: {len(samples)} records of {len(found)} reviews ({said})", markup=False)


def find(folder: Path) -> Iterator[Reviewed]:
    """Yields every reviewed answer below a folder, in the order of the names.

    Raises:
        UserError: if a review, or the answer that it is of, cannot be read.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name the one with the reviews")
    for path in sorted(folder.rglob(f"*{SUFFIX}")):
        beside = path.with_name(path.name.removesuffix(SUFFIX) + ".json")
        answer = read_json(beside)
        try:
            yield Reviewed(answer["video"]["path"], answer["question"], _said(answer), read_review(path))
        except (KeyError, TypeError) as error:
            raise UserError(f"{beside} is no answer ({error} is missing): save it with --json") from None
    for path in sorted(folder.rglob("reviews.json")):
        yield from _of_session(path)


def _of_session(path: Path) -> Iterator[Reviewed]:
    """Yields the reviewed moments of a run, whose questions ask when something is there."""
    run = RunFolder(path.parent)
    questions = {one["name"]: one["question"] for one in run.made_with().get("questions", ())}
    moments = {
        moment["id"]: moment
        for record in run.records().values()
        for moment in record.get("moments", ())
        if "id" in moment
    }
    for name, values in read_json(path).get("reviews", {}).items():
        if name not in moments:
            raise UserError(f"{path}: {name!r:.100} is not of this run: put reviews.json beside its page")
        record, moment = moments[name], Moment.from_dict(moments[name])
        question = questions.get(moment.label)
        if question is None:  # what a description named was not asked for
            continue
        interval = (moment.start_s, moment.end_s)
        same = {"interval": interval, "object": moment.label}
        mentions = tuple(dataclasses.replace(e, **same) for e in moment.evidence)
        answer = grammar.render_interval(*interval, question_language(question))
        said = Candidate(answer, 0.0, mentions=mentions, intervals=(interval,))
        yield Reviewed(record["file"], question, said, from_dict(values, str(path)))


def _said(answer: Mapping[str, Any]) -> Candidate:
    """Returns what a model said, with boxes in 0-1."""
    parsed = grammar.parse(answer["raw"])
    think, text = (
        coords.rewrite_boxes(part, coords.PER_MILLE, coords.NORMALISED)
        for part in (parsed.think, parsed.answer)
    )
    mentions = tuple(
        Grounding(
            e["object"],
            e["time_s"],
            tuple(e["interval"]) if e["interval"] else None,
            (tuple(e["box"]),) if e["box"] else (),
        )
        for e in answer["evidence"]
    )
    intervals = tuple(map(tuple, answer["intervals"])) or _intervals(mentions)
    return Candidate(text or tagged(answer["text"]), 0.0, think, mentions, intervals)


def _intervals(mentions: tuple[Grounding, ...]) -> tuple[tuple[float, float], ...]:
    return tuple(dict.fromkeys(m.interval for m in mentions if m.interval))


def tagged(text: str) -> str:
    """Returns a person's answer with its times as a model writes them: `12.3 s` becomes `<t>12.3</t>s`."""
    return _SECONDS.sub(lambda found: grammar.render_time(float(found[1])), text)


def right_answer(one: Reviewed) -> Candidate | None:
    """Returns the answer as it should be; None where nobody says what is right."""
    said, review = one.said, one.review
    if review.verdict == "wrong":
        return None
    if review.verdict == "right":
        return dataclasses.replace(said, preference=1.0)
    answer, mentions = said.answer, said.mentions
    if review.evidence is not None:
        mentions = review.evidence
        if _only_times(answer) and (spans := _intervals(mentions)):
            language = question_language(one.question)
            answer = "; ".join(grammar.render_interval(*span, language) for span in spans)
    if review.answer is not None:
        answer = tagged(review.answer)
    intervals = _intervals(mentions) or grammar.parse(answer).intervals or said.intervals
    return Candidate(answer, 1.0, "", mentions, intervals)


def _sample(one: Reviewed) -> Sample | None:
    """Returns the record of a review; None where nobody says what is right."""
    right = right_answer(one)
    if right is None:
        return None
    info = probe(one.video)
    digest = hashlib.sha256(f"{os.path.abspath(one.video)}\0{one.question}".encode(errors="replace"))
    folder = hashlib.sha256(os.path.abspath(one.video).encode(errors="replace")).hexdigest()[:8]
    return Sample(
        id=digest.hexdigest()[:16],
        source="reviews",
        task=TEMPORAL if _only_times(right.answer) else SPATIO_TEMPORAL,
        question=one.question,
        answer=right.answer,
        video_path=f"videos/{folder}-{Path(one.video).name}",
        image_size=(info.width, info.height),
        duration=info.duration_s,
        reasoning=right.reasoning,
        mentions=right.mentions,
        intervals=right.intervals,
        candidates=(right, one.said) if one.review.verdict == "fixed" else (),
        language=question_language(one.question),
    )


def _only_times(answer: str) -> bool:
    parsed = grammar.parse(answer, coords.NORMALISED)
    return bool(parsed.times) and not parsed.claims
