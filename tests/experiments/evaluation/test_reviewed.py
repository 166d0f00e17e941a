"""What people said of answers, as truth for a calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import o3jax
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from experiments.evaluation.reviewed import lines_of_reviews
from o3jax.errors import UserError


@pytest.fixture
def model(monkeypatch):
    """o3-tiny; the two more passes are tested where they are made."""
    made = o3jax.load("o3-tiny")
    monkeypatch.setattr(made, "ask_again", lambda *_: [(None, None)])
    return made


def save(folder: Path, name: str, answer: dict, review: dict) -> None:
    (folder / f"{name}.json").write_text(json.dumps(answer))
    (folder / f"{name}.review.json").write_text(json.dumps(review))


def test_reviewed_answers_are_lines_with_what_people_said_as_truth(model, clip, tmp_path):
    question = make_samples(make_scene(8))[0].question
    answer = json.loads(model.answer(clip, question, verify="cheap").to_json())
    [seen] = answer["evidence"]
    there = {name: seen[name] for name in ("object", "time_s", "box", "interval")}
    far = there | {"box": [0.0, 0.0, 0.01, 0.01]}
    for name, review in {
        "a": {"verdict": "right"},
        "b": {"verdict": "wrong"},
        "c": {"verdict": "fixed", "answer": "a green ball", "evidence": [there]},  # only the words are
        "d": {"verdict": "fixed", "evidence": [far | {"interval": [5.0, 5.5], "time_s": 5.2}]},
    }.items():
        save(tmp_path, name, answer, review)
    save(tmp_path, "e", answer | {"raw": "<answer>something else</answer>"}, {"verdict": "right"})
    lines = lines_of_reviews(model, tmp_path)
    claims = answer["raw"].count("</obj>")
    assert [line.correct for line in lines[:3]] == [True, False, False]
    assert [set(line.evidence_right) for line in lines] == [{True}, {False}, {True}, {False}]
    assert {len(line.evidence_right) for line in lines} == {claims}
    assert {line.seen.question for line in lines} == {question} and lines[0].seen.text
    assert len({line.id for line in lines}) == 4
    assert (
        len({line.id.rsplit("-", 1)[0] for line in lines}) == 1
    )  # one video: never on both sides of a split


def test_reviews_of_another_model_s_answers_are_refused(model, clip, tmp_path):
    answer = {"question": "What is it?", "text": "x", "raw": "<answer>x</answer>", "evidence": []}
    save(tmp_path, "a", answer | {"intervals": [], "video": {"path": str(clip)}}, {"verdict": "right"})
    with pytest.raises(UserError, match="of 1 reviewed answers this model gives none again"):
        lines_of_reviews(model, tmp_path)
