"""The consistency experiment on lines made by hand, and the clips that differ from those of training."""

from __future__ import annotations

import dataclasses
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import COLORS, SHAPES, make_scene
from experiments.evaluation import calibrating, consistency, shifts
from experiments.evaluation.observing import Line, Part, lines_of
from experiments.evaluation.scores import Question
from o3jax.errors import UserError
from o3jax.verify.confidence_model import read_calibration
from o3jax.verify.signals import Observed, names
from tests.o3jax.verify.test_signals import SEEN, fitted


def line(number, correct, evidence, shift="none", **values) -> Line:
    seen = dataclasses.replace(SEEN, **values)
    return Line(f"l1-{number}-where-en", 1 + number % 3, "where", shift, correct, evidence, seen)


LINES = [
    *(line(n, n % 10 > 0, (True,)) for n in range(60)),
    *(line(n, n % 4 == 0, (True, False), kept="At <t>9.0</t>s") for n in range(60, 90)),
    *(line(n, False, ()) for n in range(90, 100)),
    *(line(n, False, (False,), "hidden", kept=None, probabilities=(0.1,) * len(SEEN.ends)) for n in range(9)),
]


def test_accuracy_where_the_evidence_is_right_and_where_not():
    found = consistency.report(LINES, None)["evidence"]
    assert found["right"]["N"] == 60 and found["right"]["accuracy"] == 54 / 60
    assert found["wrong"]["N"] == 40 and found["wrong"]["accuracy"] == 8 / 40
    assert found["gap"] == pytest.approx(54 / 60 - 8 / 40)
    ends = stats.binomtest(8, 40).proportion_ci(0.95, "wilson")
    assert found["wrong"]["interval"] == pytest.approx((ends.low, ends.high))


def test_the_report_is_whole_and_printed(tmp_path):
    found = consistency.report(LINES, fitted())
    assert found["all"]["N"] == 100 and {level["N"] for level in found["levels"].values()} == {33, 34}
    assert found["shifts"]["hidden"]["N"] == 9
    sure = found["shifts"]["hidden"]
    assert sure["unchanged_confidence"] > sure["confidence"]
    # Questions 1-8 are right as they are; all nine have the same two confidences.
    assert found["hidden_fall_N"] == 8
    assert found["hidden_fall_median"] == pytest.approx(sure["unchanged_confidence"] - sure["confidence"])
    assert found["mean token probability"]["auroc"] == 0.5
    out = io.StringIO()
    consistency._print(found | {"model": "m"}, Console(file=out, width=200))
    assert "accuracy where the evidence is right: 0.900" in out.getvalue()
    consistency._draw(found, tmp_path / "reliability.png")
    assert (tmp_path / "reliability.png").stat().st_size > 5000


def test_promises_that_are_made_are_plain_numbers_too():
    good = [line for line in LINES if line.correct]
    found = consistency.report(good * 4, fitted())["bounds"]
    assert json.loads(json.dumps(found)) == found
    assert all(row["resplits_promised"] == row["resplits_kept"] == 100 for row in found)


def test_lines_survive_their_file(tmp_path):
    file = tmp_path / f"{Part(1, 'test', 2).name}.jsonl"
    texts = [json.dumps(dataclasses.asdict(one)) for one in LINES[:2]]
    # The first was given by two processes, and one was killed while it wrote.
    file.write_text("\n".join([texts[0], texts[1][:40], *texts, ""]))
    found = lines_of(None, Part(1, "test", 2), tmp_path)  # no model: nothing is asked again
    assert [one.seen.text for one in found] == [SEEN.text] * 2 and found[0].evidence_right == (True,)
    assert consistency.report(found, fitted())["all"] == consistency.report(LINES[:2], fitted())["all"]
    assert isinstance(found[0].seen, Observed) and found[0].seen.estimates[0].box == SEEN.estimates[0].box


@pytest.fixture(scope="module")
def scene():
    return make_scene(1, 1)


def test_the_hidden_object_is_in_no_frame(scene):
    question = Question(make_samples(scene)[0], scene)
    gone = shifts.without(scene, question)
    assert question.target not in gone.objects and len(gone.objects) == len(scene.objects) - 1
    start, end = question.target.visible[0]
    x1, y1, x2, y2 = (np.array(question.target.box((start + end) / 2)) * 128).astype(int)
    before, after = (one.render([(start + end) / 2])[0].astype(int) for one in (scene, gone))
    assert np.abs(before - after)[y1:y2, x1:x2].max() > 60
    outside = np.abs(before - after)
    outside[max(y1 - 1, 0) : y2 + 2, max(x1 - 1, 0) : x2 + 2] = 0
    assert outside.max() == 0


def test_removed_frames_show_the_one_before(scene):
    times = np.arange(75, 150) / 25  # where something moves
    changed, plain = (one.render(times) for one in (shifts.Changed(scene, "removed"), scene))
    moves, fresh = ((one[1:] != one[:-1]).any((1, 2, 3)).sum() for one in (plain, changed))
    assert 0.1 * moves < fresh < 0.5 * moves
    last = 0
    for i in range(1, len(times)):  # each is a frame from before, and none comes back
        last = next(j for j in range(last, i + 1) if np.array_equal(changed[i], plain[j]))


def test_noise_is_strong_and_the_same_every_time(scene):
    noisy, plain = (one.render([1.0, 2.0]) for one in (shifts.Changed(scene, "noise"), scene))
    assert 15 < np.std(noisy.astype(int) - plain) < 35
    assert np.array_equal(noisy[1], shifts.Changed(scene, "noise").render([2.0])[0])


def test_unseen_looks_are_none_of_training_and_are_asked_by_name():
    for seed in range(1, 30):
        old = make_scene(seed, 2)
        scene = dataclasses.replace(old, objects=tuple(map(shifts._other_look, old.objects)))
        for thing in scene.objects:
            assert thing.color not in COLORS and thing.shape in {"circle", "triangle", "diamond", "cross"}
            assert min(np.abs(np.subtract(thing.rgb, rgb)).sum() for rgb in COLORS.values()) > 40
        for sample in make_samples(scene):
            assert Question(sample, scene).target in scene.objects
            assert not any(color in sample.question for color in COLORS)
    assert {"diamond", "cross"}.isdisjoint(SHAPES)


def test_unseen_shapes_fill_their_boxes(scene):
    for shape in ("diamond", "cross"):
        thing = dataclasses.replace(scene.objects[0], shape=shape, rgb=(0, 255, 0))
        time = sum(thing.visible[0]) / 2
        frame = dataclasses.replace(scene, objects=(thing,)).render([time])[0]
        there = frame.astype(int)[..., 1] - frame[..., 0] > 120
        rows, columns = np.nonzero(there)
        box = np.array(thing.box(time)) * 128
        np.testing.assert_allclose(
            [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], box, atol=2.1
        )
        side = box[2] - box[0]
        share = {"diamond": 1 / 2, "cross": 5 / 9}[shape]
        assert there.sum() == pytest.approx(share * side**2, rel=0.12)


def test_a_calibration_is_written_where_the_model_finds_it(tmp_path, monkeypatch):
    rng, folder = np.random.default_rng(0), tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    lines = []
    for n in range(120):
        right = bool(rng.random() < 0.5)
        sure = np.clip(0.5 + 0.3 * right + 0.2 * rng.normal(), 0.01, 0.99)
        estimate = dataclasses.replace(SEEN.estimates[0], confidence=float(sure))
        lines.append(line(n, right, (right,), estimates=(estimate,), kept=SEEN.kept if right else ""))
    monkeypatch.setattr(consistency, "collect", lambda *args: lines)
    monkeypatch.setattr(calibrating, "KINDS", ("logistic",))
    out = io.StringIO()
    console = Console(file=out, width=200)
    found = consistency.run_calibration(
        lambda: SimpleNamespace(folder=folder), tmp_path / "work", 120, 0, console
    )
    fit = read_calibration(folder)
    assert found["full"]["held_out"]["auroc"] > 0.8 and found["full"]["kind"] == "logistic"
    # What the command printed of the bounds is what the file promises.
    assert [dataclasses.asdict(bound) for bound in fit.full.bounds] == found["full"]["bounds"]
    good, bad = (
        fit.answer(dataclasses.replace(SEEN, estimates=(estimate,), kept=kept), full=True)
        for estimate, kept in ((dataclasses.replace(estimate, confidence=0.95), SEEN.kept), (estimate, ""))
    )
    assert good > bad
    rows = {row["signals"]: row for row in found["ablation"]}
    assert set(rows) == {"all", *calibrating.GROUPS} and rows["decoder's logit"]["alone"]["auroc"] > 0.6
    assert "only its evidence shown" in out.getvalue()


def test_every_signal_is_in_one_group_of_the_ablation():
    grouped = [name for group in calibrating.GROUPS.values() for name in group]
    assert sorted(grouped) == sorted(names(full=True))


def test_answers_of_another_model_are_not_taken(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for folder, content in ((one, "{}"), (other, "[]")):
        folder.mkdir()
        (folder / "config.json").write_text(content)
    consistency.collect(SimpleNamespace(folder=one), [], tmp_path / "work")
    consistency.collect(SimpleNamespace(folder=one), [], tmp_path / "work")
    with pytest.raises(UserError, match="choose another folder"):
        consistency.collect(SimpleNamespace(folder=other), [], tmp_path / "work")
