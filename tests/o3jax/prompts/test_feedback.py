"""Proposals told to the language model: their words, what training makes up, and where they come in."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import o3jax
from data_pipelines.formats.sample import Sample
from data_pipelines.reading.sources import VideoSource
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from o3jax.generate.sampler import Generated
from o3jax.grounding import Grounding
from o3jax.hf import config_from_hf
from o3jax.inference import respond as engine
from o3jax.inputs.processor import load_processor
from o3jax.models.qwen3_vl import with_evidence
from o3jax.prompts import grammar
from o3jax.prompts.feedback import made_up, with_proposals
from o3jax.tasks import SPATIO_TEMPORAL
from o3jax.video import VideoInfo
from tests.o3jax.inference.test_respond import prompt_of
from tests.o3jax.sft.test_joint import EVIDENCE, ROW, SHAPE

SURE = Grounding("", 2.04, (1.0, 3.0), ((0.1, 0.2, 0.305, 0.4),))
ASKED = dataclasses.replace(EVIDENCE, feedback="prompt")


def test_proposals_are_written_as_a_response_writes_them():
    assert with_proposals("When?", []) == "When?"
    text = with_proposals("When?", [SURE, Grounding("", 5.0)], box_step=10)
    assert text.splitlines() == [
        "When?",
        "<box>[100,200,300,400]</box>at<t>2.0</t>s, visible from <t>1.0</t>s to <t>3.0</t>s.",
        "at<t>5.0</t>s.",
    ]
    (claim,) = grammar.parse(f"<obj>x</obj>{text.splitlines()[1]}").claims
    assert claim.time_s == 2.0 and claim.boxes[0] == pytest.approx((0.1, 0.2, 0.3, 0.4))


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=8), st.floats(0.04, 1e4), st.booleans(), st.booleans())
def test_what_training_makes_up_lies_in_the_video(sample_id, duration, has_interval, has_box):
    truth = [
        Grounding(
            "",
            duration / 2,
            (duration / 4, duration) if has_interval else None,
            SURE.boxes if has_box else (),
        )
    ]
    made = made_up(truth, sample_id, duration)
    assert made == made_up(truth, sample_id, duration)
    if not made:
        return
    ((time, interval, box),) = [(m.time_s, m.interval, m.box) for m in made]
    assert 0 <= time <= duration
    assert (interval is None) != has_interval and (box is None) != has_box
    if interval:
        assert 0 <= interval[0] <= interval[1] <= duration
    if box:
        assert all(0 <= c <= 1 for c in box) and box[0] <= box[2] and box[1] <= box[3]


def test_made_up_proposals_are_off_as_stated():
    made = [made_up([SURE], str(i), 6.0) for i in range(2000)]
    assert 0.21 < np.mean([not m for m in made]) < 0.29
    off = np.array([m[0].time_s - SURE.time_s for m in made if m])
    near = abs(off) < 0.8
    assert 0.85 < near.mean() < 0.97  # one in ten is elsewhere, some of these by chance near
    assert 0.17 < off[near].std() < 0.25 and abs(off[near].mean()) < 0.02


def test_a_row_is_asked_with_proposals_only_if_the_model_is(video_model):
    processor = load_processor(video_model)
    clip = SyntheticClips("train", 1, questions=2)[0]
    shape = dataclasses.replace(ROW, length=640)

    def text(evidence, targets=SHAPE):
        config = dataclasses.replace(config_from_hf(video_model), evidence=evidence)
        row = MakeRow(processor, config, shape, evidence=targets).map(clip).inputs.text
        return processor.decode(row.input_ids[row.segment_ids > 0], skip_special_tokens=False)

    plain, asked = text(EVIDENCE), text(ASKED)
    assert plain == text(None, targets=None)
    assert asked != plain
    for sample in clip.samples:
        assert f"{sample.question}<|im_end|>" in plain
        silent = not made_up([SURE], sample.id, 6.0)
        assert (f"{sample.question}<|im_end|>" in asked) == silent
        assert (f"{sample.question}\n<box>" in asked) != silent


def test_what_a_row_makes_up_may_lie_anywhere_in_the_video(video_model):
    """Also behind the last mention."""
    processor = load_processor(video_model)
    config = dataclasses.replace(config_from_hf(video_model), evidence=ASKED)
    rows = MakeRow(processor, config, ROW, evidence=SHAPE)
    info = VideoInfo(10.0, 25.0, 250, 128, 128, "h264", 0)
    evidence = {"mentions": (Grounding("car", 4.0),), "intervals": ((2.0, 6.0),)}
    ends = []
    for name in map(str, range(40)):
        sample = Sample(name, "test", SPATIO_TEMPORAL, "When?", "x", duration=8.0, **evidence)
        (prompt,) = rows.write(Clip((sample,), VideoSource(Path("v.mp4"), info))).prompts
        made = made_up([Grounding("", 4.0, (2.0, 6.0))], name, 8.0)
        text = processor.decode(prompt, skip_special_tokens=False)
        assert f"{with_proposals('When?', made)}<|im_end|>" in text
        ends += [proposal.interval[1] for proposal in made]
    assert np.median(ends) == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("feedback", ["none", "prompt"])
def test_an_answer_is_written_from_the_proposals(video_model, monkeypatch, feedback):
    model = o3jax.load(video_model)
    evidence = dataclasses.replace(EVIDENCE, feedback=feedback)
    model.backbone = with_evidence(model.backbone, evidence, jax.random.key(1))
    read = []

    def say(backbone, batch, ending, visuals):
        for ids, real in zip(batch.text.input_ids, batch.text.segment_ids, strict=True):
            read.append(model.processor.decode(ids[real > 0], skip_special_tokens=False))
        width = model.config.text.hidden_size
        zeros = np.zeros((len(batch.text.input_ids), 1), np.float32)
        return Generated(
            zeros.astype(np.int32), zeros, np.ones(len(zeros), int), np.zeros((*zeros.shape, width))
        )

    monkeypatch.setattr(engine, "greedy", say)
    clip = SyntheticClips("train", 1, questions=2)[0]
    requests = [prompt_of(model, clip, s.question) for s in clip.samples]
    model.respond(requests, max_new_tokens=1)
    for text, request in zip(read, requests, strict=True):
        _, _, after = text.partition(request.question)
        line = after.split("<|im_end|>")[0]
        assert (line == "") == (feedback == "none")
        if feedback == "prompt":
            (claim,) = grammar.parse(f"<obj>x</obj>{line.strip().splitlines()[0]}").claims
            assert 0 <= claim.time_s <= 6.0 and len(claim.boxes) == 1
            assert 1 <= len(line.strip().splitlines()) <= EVIDENCE.proposals
