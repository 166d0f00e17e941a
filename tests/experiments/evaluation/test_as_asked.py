"""Evaluation and calibration answer as `model.answer` does, also where a search goes on or gives up."""

from __future__ import annotations

import o3jax
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene, scene_seed
from experiments.evaluation import observing
from experiments.evaluation.scores import Question
from experiments.evaluation.synthetic import generate
from o3jax.report.answer import plain_text
from o3jax.verify.reasons import answer_and_reasoning


def test_a_long_clip_is_answered_as_it_is_asked(tmp_path, monkeypatch):
    """Which of two disappears first, for which the search goes on, and when what never appears is seen."""
    scene = make_scene(scene_seed("test", 3), 4, seconds=90)
    first, never = [sample for sample in make_samples(scene) if sample.kind in ("first", "never")]
    questions, model = [Question(sample, scene) for sample in (first, never)], o3jax.load("o3-tiny")
    path = tmp_path / first.video_path
    path.parent.mkdir()
    write_video(scene, path)
    wanted = [model.answer(path, sample.question, verify="cheap") for sample in (first, never)]
    assert [answer.text for answer in wanted] == [first.answer, never.answer]  # as the scene has it
    assert [len(answer.search.intervals) for answer in wanted] == [2, 1]

    settings = {"batch_size": 16, "max_new_tokens": 256, "on_batch": lambda n: None}
    said = generate(model, questions, tmp_path, **settings)
    texts = [answer_and_reasoning(response.text)[0] for response in said]
    assert [plain_text(*pair) for pair in zip(texts, ("en", "zh"), strict=True)] == [a.text for a in wanted]
    assert [response.search for response in said] == [answer.search for answer in wanted]

    monkeypatch.setattr(model, "ask_again", lambda _, some, __: [(None, None)] * len(some))
    monkeypatch.setattr(observing, "write_clips", lambda *_: [(question, path) for question in questions])
    lines = observing.lines_of(model, observing.Part(3, "test", 2), tmp_path / "lines")
    assert [(line.never, line.correct) for line in lines] == [(False, True), (True, True)]
    assert [len(line.evidence_right) for line in lines] == [len(wanted[0].evidence), 0]
