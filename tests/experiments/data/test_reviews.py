"""What people said of answers becomes a data set that trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_pipelines.formats.index import index_folder
from experiments.data.reviews import tagged
from tests.support import library
from tests.support.commands import run_command
from tests.support.configs import CONFIG

RAW = (
    "<think><obj>cat</obj><box>[250,250,500,750]</box>at<t>1.5</t>s</think>"
    "<answer>From <t>1.0</t>s to <t>2.0</t>s</answer>"
)


def save_answer(folder: Path, name: str, video: Path, question: str, review: dict | None) -> None:
    seen = {"object": "cat", "time_s": 1.5, "box": [0.25, 0.25, 0.5, 0.75], "interval": [1.0, 2.0]}
    said = {"question": question, "text": "From 1.0 s to 2.0 s", "raw": RAW, "evidence": [seen]}
    said |= {"intervals": [[1.0, 2.0]], "video": {"path": str(video)}}
    (folder / f"{name}.json").write_text(json.dumps(said))
    if review:
        (folder / f"{name}.review.json").write_text(json.dumps(review))


def test_reviews_become_records_with_the_person_s_answer_first(capfd, numbered, tmp_path):
    fixed = {"object": "cat", "time_s": 2.5, "box": [0.5, 0.25, 0.75, 0.75], "interval": [2.0, 3.0]}
    save_answer(tmp_path, "a", numbered.path, "When is the cat here?", {"verdict": "right"})
    save_answer(tmp_path, "b", numbered.path, "When is it there?", {"verdict": "fixed", "evidence": [fixed]})
    save_answer(
        tmp_path, "c", numbered.path, "What is it?", {"verdict": "fixed", "answer": "A dog at 2.5 s."}
    )
    save_answer(tmp_path, "d", numbered.path, "Which?", {"verdict": "wrong"})
    save_answer(tmp_path, "e", numbered.path, "Nobody looked", None)
    done = run_command(capfd, "data", "from-reviews", str(tmp_path), f"--out={tmp_path / 'set'}")
    assert done.code == 0 and "3 records of 4 reviews (2 fixed, 1 right, 1 wrong)" in done.out, done.err
    samples, rejected = index_folder(tmp_path / "set")
    assert not rejected
    right, moved, named = (
        next(s for s in samples if s.question.startswith(q)) for q in ("When is the", "When is it", "What")
    )
    assert right.answer == "From <t>1.0</t>s to <t>2.0</t>s" and not right.candidates
    assert "<box>[0.250,0.250,0.500,0.750]</box>" in right.reasoning  # boxes in 0-1
    assert moved.answer == "From <t>2.0</t>s to <t>3.0</t>s" and moved.intervals == ((2.0, 3.0),)
    assert moved.mentions[0].boxes == ((0.5, 0.25, 0.75, 0.75),)
    best, model = sorted(moved.candidates, key=lambda c: -c.preference)
    assert (best.answer, model.answer) == (moved.answer, right.answer) and best.preference > model.preference
    assert named.answer == "A dog at <t>2.5</t>s." and named.mentions[0].time_s == 1.5
    assert (tmp_path / "set" / moved.video_path).read_bytes() == numbered.path.read_bytes()
    assert tagged("从1.8秒到6秒, in 3 shapes") == "从<t>1.8</t>s到<t>6.0</t>s, in 3 shapes"
    assert tagged("From 1.0 s to 12 s") == "From <t>1.0</t>s to <t>12.0</t>s"


def test_the_reviews_of_a_run_s_page(capfd, monkeypatch, tmp_path):
    library.use(monkeypatch, tmp_path)
    library.film(tmp_path / "a.mp4", 6.0, [(2.0, 4.0)])
    given = (f"--events={tmp_path / 'events.yaml'}", f"--out={tmp_path / 'out'}")
    assert run_command(capfd, "watch", str(tmp_path / "a.mp4"), *given).code == 0
    [alert] = map(json.loads, (tmp_path / "out" / "alerts.jsonl").read_text().splitlines())
    fixed = {"object": "light", "time_s": 3.0, "box": [0.2, 0.5, 0.5, 0.8], "interval": [2.0, 4.5]}
    reviews = {alert["id"]: {"verdict": "fixed", "answer": None, "evidence": [fixed], "note": ""}}
    (tmp_path / "out" / "reviews.json").write_text(json.dumps({"reviews": reviews}))
    done = run_command(capfd, "data", "from-reviews", str(tmp_path / "out"), f"--out={tmp_path / 'set'}")
    assert done.code == 0, done.err
    [sample], _ = index_folder(tmp_path / "set")
    assert sample.question == "When is the light on?" and sample.answer == "From <t>2.0</t>s to <t>4.5</t>s"
    assert sample.candidates[1].answer == "From <t>2.0</t>s to <t>4.0</t>s"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no reviews"),
        ({"a.review.json": "{}", "a.json": "{}"}, "is no answer"),
        ({"a.review.json": '{"verdict": "wrong"}'}, "a.json"),
        ({"reviews.json": "{}"}, "holds no run"),
        ({"reviews.json": '{"reviews": {"x": {}}}', "run.json": "{}"}, "is not of this run"),
    ],
)
def test_what_is_no_review_is_said(capfd, tmp_path, files, says):
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    done = run_command(capfd, "data", "from-reviews", str(tmp_path / "in"), f"--out={tmp_path / 'set'}")
    assert done.code == 2 and says in done.err and not (tmp_path / "set").exists(), done.err


def test_thirty_fixed_answers_are_learnt(capfd, clip, video_model, tmp_path):
    """An SFT run on what people fixed lowers the loss on it; with the program of the tests of training."""
    for n in range(30):
        start = n / 10
        seen = {"object": "cat", "time_s": start + 1, "box": [0.25, 0.25, 0.5, 0.75]}
        fixed = {"verdict": "fixed", "evidence": [seen | {"interval": [start, start + 2]}]}
        save_answer(tmp_path, f"{n:02d}", clip, f"When is cat {n} here?", fixed)
    assert run_command(capfd, "data", "from-reviews", str(tmp_path), f"--out={tmp_path / 'set'}").code == 0
    (tmp_path / "sft.py").write_text(CONFIG.format(model=str(video_model), steps=10))
    given = [f"--config={tmp_path / 'sft.py'}", f"--workdir={tmp_path / 'run'}"]
    given += [f"--config.data_path={tmp_path / 'set'}", "--config.save_every=1000"]
    done = run_command(capfd, "sft", *given)
    assert done.code == 0, done.err
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert len(losses) == 10 and sum(losses[-3:]) < 0.85 * sum(losses[:3])
