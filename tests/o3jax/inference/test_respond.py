"""Estimates beside a generated text: the same as in training, whatever was recorded or padded."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import o3jax
from data_pipelines.rows.evidence import OpenCandidates
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from data_pipelines.synthetic.datasets import write_video
from o3jax.generate.cache import extend, prefill
from o3jax.generate.sampler import Ending, Generated, greedy
from o3jax.inference import matching
from o3jax.inference import respond as engine
from o3jax.inference.respond import Request
from o3jax.inputs.collate import collate
from o3jax.models.batch import take
from o3jax.models.qwen3_vl import mention_states, with_evidence
from o3jax.models.text import for_training
from o3jax.prompts import templates
from o3jax.prompts.mentions import mention_positions
from tests.o3jax.sft.test_joint import EVIDENCE, ROW, SHAPE
from tests.support.clips import dense_of, sampled


@pytest.fixture(scope="module")
def model(video_model):
    loaded = o3jax.load(video_model)
    loaded.backbone = with_evidence(loaded.backbone, EVIDENCE, jax.random.key(1))
    return loaded


def prompt_of(model, clip, question):
    text = model.processor.apply_chat_template(templates.messages(question, model.settings.prompt_style))
    frames, metadata = sampled(clip, model.processor)
    return Request(question, text, frames, metadata, *dense_of(clip, model.processor, EVIDENCE))


TEXTS = (
    "<think>a <obj>red car</obj><box>[1,2,3,4]</box></think>",
    "a <obj>red car</obj> is there",
    "<obj>red car</obj>\nthen",
    "<obj>红色汽车</obj>在那里",
)


def test_recorded_states_are_those_of_the_teacher_forced_pass(model):
    """Whatever follows the tag: the state is at the token that holds its `obj`."""
    processor, backbone = model.processor, model.backbone
    clip = SyntheticClips("train", 1, questions=1)[0]
    request = prompt_of(model, clip, "When?")
    inputs = processor(text=[request.prompt], videos=[request.frames], video_metadata=[request.metadata])
    length = inputs["input_ids"].shape[1]
    start = jax.jit(lambda m, b: prefill(m, b, 32))
    step = jax.jit(extend)
    forward = jax.jit(lambda m, b: m.hidden(b.text, m.encode_visuals(b)))
    for text in TEXTS:
        ids = processor.tokenizer(text)["input_ids"]
        _, cache = start(backbone, collate(inputs, model.config))
        recorded = []
        for token in ids:
            hidden, cache = step(backbone, jnp.array([token]), cache)
            recorded.append(hidden[0])
        whole = np.concatenate([inputs["input_ids"][0], ids])[None]
        batch = collate(
            inputs | {"input_ids": whole, "attention_mask": np.ones_like(whole)},
            model.config,
            length=length + 32,
        )
        (position,) = mention_positions(processor.tokenizer, ids)
        assert "obj" in processor.decode(ids[: position + 1])[-6:]
        expected = mention_states(forward(backbone, batch), np.array([[[length + position]]]))
        np.testing.assert_allclose(recorded[position], expected[0, 0], atol=2e-5)


def test_generation_records_the_state_at_each_token(model):
    processor, backbone = model.processor, model.backbone
    request = prompt_of(model, SyntheticClips("train", 1, questions=1)[0], "When?")
    inputs = processor(text=[request.prompt], videos=[request.frames], video_metadata=[request.metadata])
    batch = collate(inputs, model.config)
    out = greedy(backbone, batch, Ending(6, (), 0))
    start = jax.jit(lambda m, b: prefill(m, b, 32))
    step = jax.jit(extend)
    _, cache = start(backbone, batch)
    for i in range(5):
        hidden, cache = step(backbone, out.tokens[:, i], cache)
        np.testing.assert_allclose(out.states[:, i], hidden, atol=2e-5)
    assert not np.asarray(out.states[:, 5]).any()


def test_an_answer_is_estimated_as_in_training(model, monkeypatch):
    """The row of a batch, padded to buckets, against the packed row that the loss reads."""
    processor, backbone = model.processor, model.backbone
    clip = SyntheticClips("train", 1, questions=2)[0]
    rows = MakeRow(processor, model.config, ROW, style=model.settings.prompt_style, evidence=SHAPE)
    row = OpenCandidates().random_map(rows.map(clip), np.random.default_rng(0))
    batch = take(row.inputs, None)
    training = copy.copy(backbone)
    training.text = copy.copy(backbone.text)
    training.text.layers = for_training(backbone.text.layers)

    @jax.jit
    def run(model, batch):
        visuals = model.encode_visuals(batch)
        states = mention_states(model.hidden(batch.text, visuals), batch.questions.mention_index)
        _, relevance = model.relevance(batch.questions, visuals)
        there = (batch.questions.mention_index >= 0)[0]
        everything = jnp.ones((SHAPE.questions, SHAPE.frame_pairs), bool)
        return states, jax.nn.sigmoid(relevance), model.estimate(states, there, visuals, everything)

    states, relevance, expected = jax.tree.map(np.asarray, run(training, batch))

    requests = [prompt_of(model, clip, s.question) for s in clip.samples]
    requests.append(requests[0])  # a batch of three: one program with another number of rows
    texts = [templates.response(s) for s in (*clip.samples, clip.samples[0])]

    def say(backbone, batch, ending, visuals):
        ids = [processor.tokenizer(text)["input_ids"] for text in texts]
        tokens = np.zeros((3, max(map(len, ids))), np.int32)
        kept = np.zeros((*tokens.shape, states.shape[-1]), np.float32)
        for r, row in enumerate(ids):
            tokens[r, : len(row)] = row
            for m, at in enumerate(mention_positions(processor.tokenizer, row)):
                kept[r, at] = states[r % 2, m]
        lengths = np.array([len(row) for row in ids])
        return Generated(tokens, np.zeros(tokens.shape, np.float32), lengths, kept)

    monkeypatch.setattr(engine, "greedy", say)
    monkeypatch.setattr(matching, "candidate_intervals", lambda relevance, times: [(0.0, 10.0)])
    responses = model.respond(requests, max_new_tokens=8)
    assert [r.text for r in responses] == texts
    assert responses[0].estimates == responses[2].estimates
    for q, response in enumerate(responses[:2]):
        assert len(response.estimates) == texts[q].count("</obj>") and len(response.times_s) == 75
        np.testing.assert_allclose(response.relevance, relevance[q, :75], atol=1e-5)
        for m, decoded in enumerate(response.estimates):
            np.testing.assert_allclose(decoded.time_s, expected.time_s[q, m], atol=1e-4)
            np.testing.assert_allclose(decoded.spread_s, expected.spread_s[q, m], atol=1e-4)
            np.testing.assert_allclose(decoded.interval, expected.interval[q, m], atol=1e-4)
            np.testing.assert_allclose(decoded.box, expected.box[q, m], atol=1e-4)
            assert 0 < decoded.confidence < 1


def test_answers_show_both_estimates(model, tmp_path, monkeypatch):
    clip = SyntheticClips("train", 1, questions=1)[0]
    write_video(clip.source.scene, tmp_path / "clip.mp4")
    claim = "<obj>red circle</obj><box>[100,200,300,400]</box>at<t>2.0</t>s"
    text = f"<think>{claim} and <obj>x</obj></think><answer>yes</answer>"

    def say(backbone, batch, ending, visuals):
        ids = np.array([model.processor.tokenizer(text)["input_ids"]], np.int32)
        states = np.zeros((*ids.shape, model.config.text.hidden_size), np.float32)
        return Generated(ids, np.zeros(ids.shape, np.float32), np.array([ids.shape[1]]), states)

    monkeypatch.setattr(engine, "greedy", say)
    answer = model.answer(tmp_path / "clip.mp4", "Where is it?")
    (item,) = answer.evidence  # the claim without a time is none
    assert (item.object, item.text.time_s, item.text.frame) == ("red circle", 2.0, 50)
    assert item.text.box_px == (12, 25, 39, 52) or item.text.box == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert item.interval[0] <= item.time_s <= item.interval[1] and item.spread_s > 0
    assert item.frame == int(item.time_s * 25 + 0.5) and 0 < item.confidence < 1
    assert len(answer.relevance) == 75 and all(0 <= p <= 1 for _, p in answer.relevance)
    assert answer.to_dict()["evidence"][0]["text"]["frame"] == 50
    from o3jax.report import format_answer

    lines = format_answer(answer).splitlines()
    assert lines[2].startswith(f"- time {item.time_s:.1f} s (frame {item.frame}), box (x1=")
    assert lines[3].startswith("  the text says: time 2.0 s (frame 50), box (x1=")


def test_one_program_serves_all_clips_of_a_bucket(model, monkeypatch):
    """Clips of 4.9 to 6 s at one size: their frame pairs fit the same bucket."""
    compiled = []
    encode_visuals = type(model.backbone).encode_visuals
    monkeypatch.setattr(
        type(model.backbone), "encode_visuals", lambda *a, **k: compiled.append(1) or encode_visuals(*a, **k)
    )
    clip = SyntheticClips("train", 1, questions=1)[3]
    request = prompt_of(model, clip, "When is it?")
    for frames in (150, 141, 130):
        short = dataclasses.replace(
            request, dense_frames=request.dense_frames[:frames], dense_times=request.dense_times[:frames]
        )
        model.respond([short], max_new_tokens=2)
    assert len(compiled) <= 1


def test_videos_of_like_size_run_together_and_others_apart(monkeypatch):
    """Frames and pixels that a batch is padded to, against those that are there; answers in their order."""
    shapes = [(12, 64, 64), (4, 480, 640), (11, 64, 64), (12, 72, 64), (150, 64, 64), (4, 64, 640)]
    requests = [
        Request(str(n), "", np.zeros((*shape, 3), np.uint8), {}, np.zeros((9, *shape[1:], 3), np.uint8))
        for n, shape in enumerate(shapes)
    ]
    batches = []

    def respond(model, processor, some, *options):
        batches.append([int(r.question) for r in some])
        return [r.question for r in some]

    monkeypatch.setattr(engine, "_respond", respond)
    assert engine.respond(None, None, requests, Ending(9, (), 0)) == list("012345")
    assert sorted(batches) == [[0, 2, 3], [1], [4], [5]]
    requests[3] = dataclasses.replace(requests[3], dense_frames=np.zeros((90, 72, 64, 3), np.uint8))
    batches.clear()
    engine.respond(None, None, requests, Ending(9, (), 0))
    assert sorted(batches) == [[0, 2], [1], [3], [4], [5]]
