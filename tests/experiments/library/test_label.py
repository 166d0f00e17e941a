"""`o3jax label`: tags and the chapters between which they change."""

from __future__ import annotations

import pysrt
import pytest
import webvtt

from experiments.library import chapters
from experiments.library.asking import Question, moments
from o3jax.report.answer import Answer, Evidence
from o3jax.report.moments import Moment, claimed, joined, moments_of
from tests.support import library
from tests.support.commands import run_command


def test_tags_become_chapters_in_all_formats(capfd, monkeypatch, tmp_path):
    library.use(monkeypatch, tmp_path)
    library.film(tmp_path / "a.mp4", 9.0, [(2.0, 5.0)])
    (tmp_path / "tags.yaml").write_text("tags:\n- name: lit\n  question: When is the light on?\n")
    given = (f"--tags={tmp_path / 'tags.yaml'}", f"--out={tmp_path / 'out'}")
    done = run_command(capfd, "label", str(tmp_path / "a.mp4"), *given)
    assert done.code == 0, done.err
    [cue] = webvtt.read(tmp_path / "out" / "exports" / "vtt" / "a.chapters.vtt").captions
    assert (cue.start, cue.end, cue.text) == ("00:00:02.000", "00:00:05.000", "lit")
    [subtitle] = pysrt.open(str(tmp_path / "out" / "exports" / "srt" / "a.srt"))
    assert (subtitle.start.ordinal, subtitle.end.ordinal) == (2000, 5000)
    assert {p.name for p in (tmp_path / "out" / "exports").iterdir()} == {"json", "vtt", "srt", "csv"}


def test_chapters_of_tags():
    tags = [Moment("a", 1.0, 4.0, 0.9), Moment("b", 3.0, 6.0, 0.8), Moment("c", 8.0, 8.2, 0.7)]
    found = chapters.of_tags(tags, 10.0)
    assert [(c.label, c.start_s, c.end_s) for c in found[:3]] == [("a", 1, 3), ("a, b", 3, 4), ("b", 4, 6)]
    assert chapters.of_tags([], 10.0) == []


def test_pieces_that_say_the_same_are_one_chapter():
    def piece(start, text):
        return {"chapter": Moment(text, start, start + 6.0, 0.5).to_dict()}

    found = chapters.of([piece(0, "one"), piece(4, "one"), {}, piece(12, "two"), piece(16, "three")])
    assert [(c.label, c.start_s, c.end_s) for c in found] == [
        ("one", 0, 10),
        ("two", 12, 16),
        ("three", 16, 22),
    ]


def seen(time_s, interval=None, box=None, confidence=0.9):
    boxes = (box,) if box else ()
    return Evidence("cat", time_s, interval, boxes, confidence, frame=0)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"relevance": ((0.0, 0.1),), "intervals": ((1, 2),)}, []),  # nothing relevant: nothing is there
        ({"relevance": ((0.0, 0.9),), "candidates": ((1.0, 3.0),)}, [(1.0, 3.0)]),
        (
            {"relevance": ((0.0, 0.9),), "candidates": ((1.0, 3.0),), "evidence": (seen(2, (1.2, 2.8)),)},
            [(1.2, 2.8)],
        ),
        (
            {"relevance": ((0.0, 0.9),), "candidates": ((1.0, 3.0), (5, 6)), "intervals": ((1.1, 2.9),)},
            [(1.1, 2.9), (5, 6)],
        ),
        ({"intervals": ((1, 2), (1, 2), (4, 5))}, [(1, 2), (4, 5)]),  # without evidence modules
        ({"evidence": (seen(0.2), seen(3.0))}, [(0.0, 0.7), (2.5, 3.5)]),
    ],
)
def test_what_an_answer_tells_of(changes, expected):
    answer = Answer(question="q", text="t", confidence=0.7, **changes)
    assert [(m.start_s, m.end_s) for m in moments_of(answer, "x")] == expected


def test_what_is_near_is_one_moment():
    box = (0.1, 0.1, 0.2, 0.2)
    found = joined(
        [Moment("a", 0, 2, 0.5, (seen(1, box=box),), "weak", True),
         Moment("a", 2.5, 4, 0.9, (seen(3),), "sure"),
         Moment("b", 1, 2, 0.4), Moment("a", 5.5, 6, 0.1)], 1.0,
    )  # fmt: skip
    assert [(m.label, m.start_s, m.end_s, m.text) for m in found] == [
        ("a", 0, 4, "sure"), ("b", 1, 2, ""), ("a", 5.5, 6, ""),
    ]  # fmt: skip
    assert found[0].key.box == box and not found[0].needs_review and len(found[0].evidence) == 2
    answer = Answer(question="q", text="t", confidence=0.7, evidence=(seen(2, (1, 3)), seen(5)))
    assert [(m.label, m.start_s, m.end_s) for m in claimed(answer)] == [("cat", 1, 3), ("cat", 4.5, 5.5)]


def test_an_event_may_say_what_its_evidence_must_name():
    answer = Answer(question="q", text="t", confidence=0.7, evidence=(seen(2.0),), intervals=((1.0, 3.0),))
    for wanted, least, count in (("", 0.0, 1), ("Cat", 0.0, 1), ("dog", 0.0, 0), ("", 0.8, 0)):
        question = Question("n", "q", object=wanted, min_confidence=least)
        assert len(moments(question, answer, 10.0)) == count
    assert moments(Question("n", "q"), answer, 10.0)[0].start_s == 11.0
    assert moments(Question("n", "q"), None, 10.0) == []
