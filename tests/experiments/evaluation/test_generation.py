"""The evaluation on the synthetic world: what is asked in batches, the two estimates, and the command."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipelines.formats.sample import Sample
from experiments.evaluation import figures, scores
from experiments.evaluation import synthetic as synthetic_questions
from o3jax.api import Model
from o3jax.errors import UserError
from o3jax.inference.locate import DecoderEstimate
from o3jax.inference.respond import Request, Response
from o3jax.inputs.processor import load_processor
from o3jax.metrics.boxes import box_iou
from o3jax.prompts import templates
from o3jax.prompts.tiny_tokenizer import build_tokenizer
from o3jax.video import OpenVideo
from tests.experiments.test_evaluate import unseen
from tests.support.paths import ROOT

# Two objects that stand still: red circle at [0.25, 0.5]^2 from 1 to 3 s, blue star at [0.5, 1]^2 from 2
# to 5 s.


class Oracle:
    """A stand-in for a model: it finds the question in the prompt and prints the truth, with an estimate."""

    settings = SimpleNamespace(prompt_style="plain", fps=25.0, whole_s=60.0, clock="video", exact_names=False)
    config = SimpleNamespace(evidence=None)
    request, respond_searching = Model.request, Model.respond_searching

    def __init__(self, folder: Path, count: int, level: int = 1):
        self.open_video = OpenVideo
        self.samples = [q.sample for q in unseen(count, level)]
        texts = [f"{s.question} {templates.response(s, 10)}" for s in self.samples]
        self.processor = load_processor(build_tokenizer(texts, folder))
        self.calls: list[list[Request]] = []

    def respond(self, requests: list[Request], *, max_new_tokens: int) -> list[Response]:
        self.calls.append(requests)
        responses = []
        for request in requests:
            (sample,) = {s.question: s for s in self.samples if s.question in request.prompt}.values()
            text = templates.response(sample, 10)
            tokens = np.array(self.processor.tokenizer(text)["input_ids"])[:max_new_tokens]
            estimates = tuple(estimate(sample) for _ in range(text.count("</obj>")))
            responses.append(Response(tokens, np.ones(len(tokens)), text, estimates))
        return responses


def estimate(sample: Sample, late_s: float = 0.0) -> DecoderEstimate:
    """The truth as the evidence decoder would say it, everything too late by as much."""
    start, end = sample.intervals[0]
    mention = sample.mentions[0]
    interval = (start + late_s, end + late_s)
    return DecoderEstimate(
        time_s=mention.time_s + late_s,
        spread_s=0.1,
        interval=interval,
        boxes=(mention.boxes[0],),
        confidence=0.75,
    )


def test_the_two_estimates_side_by_side():
    questions = unseen(6)
    late = [0.5, -0.25, 0.0, 1.0, 0.1, -0.4]
    scored = []
    for question, shift in zip(questions, late, strict=True):
        sample = question.sample
        text = templates.response(sample, 10)
        estimates = [estimate(sample, shift)] * text.count("</obj>")
        scored.append(scores.score(question, text, estimates))
    decoded = figures.metrics(scored)["decoder"]
    lengths = [end - start for start, end in (q.sample.intervals[0] for q in questions)]
    overlap = [max(0.0, n - abs(s)) / (n + abs(s)) for n, s in zip(lengths, late, strict=True)]
    assert decoded["N"] == 6 and decoded["m_tIoU"] == pytest.approx(np.mean(overlap))
    assert (
        decoded["time_error_mean_s"] == decoded["point_error_mean_s"] == pytest.approx(np.mean(np.abs(late)))
    )
    assert decoded["time_error_median_s"] == pytest.approx(np.median(np.abs(late)))
    assert decoded["confidence_mean"] == pytest.approx(0.75)
    boxes = [
        box_iou(q.sample.mentions[0].boxes[0], q.target.box(q.sample.mentions[0].time_s + s) or (0, 0, 0, 0))
        for q, s in zip(questions, late, strict=True)
    ]
    assert decoded["m_vIoU"] == pytest.approx(np.mean(boxes)) and decoded["m_vIoU"] < 0.99
    # The text is right to a tenth: nothing of its error comes with the estimate's.
    assert abs(decoded["error_correlation"]["time"] or 0.0) < 0.7
    shifted = [dataclasses.replace(s, point_error_s=2 * e) for s, e in zip(scored, late, strict=True)]
    assert figures.decoder_metrics(shifted)["error_correlation"]["time"] == pytest.approx(1.0)
    assert decoded["right_object"]["N"] == 6 and decoded["right_object"]["m_tIoU"] == decoded["m_tIoU"]
    # The text claims another object: the decoder, asked about that one, counts for the first mean only.
    other = next(thing for thing in questions[0].scene.objects if thing is not questions[0].target)
    sample = questions[0].sample
    text = templates.response(sample, 10).replace(
        f"<obj>{sample.mentions[0].object}</obj>", f"<obj>{other.name(sample.language)}</obj>"
    )
    wrong = scores.score(questions[0], text, [estimate(sample, 0.3)] * text.count("</obj>"))
    assert figures.decoder_metrics([*scored, wrong])["right_object"] == decoded["right_object"]
    silent = scores.score(questions[0], "<think>nothing</think><answer>x</answer>")
    assert silent.decoded is None and "decoder" not in figures.metrics([silent])
    assert figures.metrics([*scored, silent])["decoder"]["m_tIoU"] == pytest.approx(sum(overlap) / 7)


def test_every_row_gets_its_question_and_its_video(tmp_path):
    oracle, data, clips = Oracle(tmp_path / "tokenizer", 5), tmp_path / "data", []
    questions = synthetic_questions.make_questions(data, "test", 5, 1, 0, lambda: clips.append(1))
    assert [q.sample for q in questions] == oracle.samples and len(clips) == 3
    assert len(list((data / "videos").glob("*.mp4"))) == 3
    done = []
    responses = synthetic_questions.generate(
        oracle, questions, data, batch_size=3, max_new_tokens=500, on_batch=done.append
    )
    assert [r.text for r in responses] == [templates.response(q.sample, 10) for q in questions]
    assert done == [3, 2] and [len(call) for call in oracle.calls] == [3, 3]  # the last batch is filled up
    pixels = np.stack([r.frames.ravel() / 127.5 for call in oracle.calls for r in call])
    total = questions[0].scene.frame_count
    at = oracle.processor.sample_indices(total, 25)
    for row, question in enumerate(questions):
        truth = question.scene.render(at / 25).ravel() / 127.5
        distances = np.abs(pixels[:5] - truth).mean(axis=1)
        same = [q.scene == question.scene for q in questions]
        assert distances[row] < 0.05  # what compression leaves
        assert all((distance < 0.05) == flag for distance, flag in zip(distances, same, strict=True))


def test_wrong_counts_are_refused(tmp_path):
    with pytest.raises(UserError, match="num_questions"):
        synthetic_questions.make_questions(tmp_path / "x", "test", 0, 1, 0, lambda: None)
    with pytest.raises(UserError, match="split"):
        synthetic_questions.make_questions(tmp_path / "x", "exam", 2, 1, 0, lambda: None)
    assert not (tmp_path / "x").exists()


def _run(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess:
    command = ["-c", code] if code else ["-m", "experiments.evaluate"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_an_unknown_benchmark_is_refused(tmp_path):
    out = tmp_path / "out.json"
    result = _run("--benchmark", "vstarr", "--out", str(out))
    assert result.returncode == 2 and not out.exists()
    assert "'vstarr'" in result.stderr and "synthetic" in result.stderr and "Traceback" not in result.stderr


def test_the_command_prints_tables_and_writes_json(tmp_path):
    code = """
import sys
from pathlib import Path
from experiments import evaluate
from experiments.cli import shell
from o3jax import api
from tests.experiments.evaluation.test_generation import Oracle
api.load = lambda path: Oracle(Path(path), 4)
shell.run(evaluate.main)
"""
    out = tmp_path / "out.json"
    result = _run("--model_path", str(tmp_path / "t"), "--num_questions", "4", "--out", str(out), code=code)
    assert result.returncode == 0, result.stderr
    assert "answer accuracy" in result.stdout and "ceiling" in result.stdout
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["metrics"]["accuracy"] == 1.0 and written["metrics"]["N"] == 4
    estimates = written["metrics"].pop("decoder")
    assert estimates["m_tIoU"] == pytest.approx(1.0) and estimates["point_error_mean_s"] == 0
    assert "evidence decoder" in result.stdout
    assert written["metrics"] == written["baselines"]["ceiling"]["metrics"]
    assert [g["id"] for g in written["generations"]] == [q.sample.id for q in unseen(4)]
    assert set(written["baselines"]) == {"chance", "prior", "copy", "ceiling"}
    assert written["baselines"]["chance"]["metrics"]["accuracy"] < 1
    assert {path.name for path in tmp_path.iterdir()} == {"t", "out.json"}
