"""What GSPO samples from: prompts as the API has them, proposals in them, frames that cannot be read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers.normalizers import NFC

from configs import gspo_tiny
from data_pipelines.reading.sources import VideoSource
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.prompts import MakePrompt, Minibatches, with_text
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.synthetic.clips import SyntheticClips
from data_pipelines.synthetic.datasets import write_video
from experiments.training.estimates import estimates_of
from experiments.training.rollouts import Updates, logprobs_of
from experiments.training.sampling import Sampler, decoder
from o3jax import load
from o3jax.errors import UserError
from o3jax.generate.sampling import Sampling
from o3jax.gspo.rows import UpdateShape, pack_groups
from o3jax.hf import config_from_hf, load_weights
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import Batch, PromptBatch, TextRow, stack
from o3jax.models.runtime import Runtime
from o3jax.models.text import for_training
from o3jax.prompts.feedback import with_proposals
from tests.support.batches import assert_equal

SHAPE = EvidenceShape(
    frame_pairs=75, patches=36, questions=1, question_length=32, mentions=2, boxes=1, intervals=1
)


def make_prompts(folder: Path, clips: Sequence[Clip], **options):
    """Returns the prompt rows of clips, and what made them."""
    processor, config = load_processor(folder), config_from_hf(folder)
    rows = MakePrompt(processor, config, RowShape(416, 12, 64), "plain", 10, **options)
    return stack([rows.map(clip) for clip in clips]), rows


def test_the_model_is_asked_as_the_api_asks(tmp_path):
    """Prompt rows with proposals, the group sampler and the heads' estimates, against `Model.respond`."""
    model = load("o3-tiny")
    assert model.config.evidence.box_frames == "pointed"
    clips, requests = [], []
    for index in range(2):
        one, path = SyntheticClips("test", 1, 1)[index], tmp_path / f"{index}.mp4"
        write_video(one.source.scene, path)
        clips.append(dataclasses.replace(one, source=VideoSource(path)))
        requests.append(model.request(path, one.samples[0].question)[0])
    prompts, rows = make_prompts(model.folder, clips, evidence=SHAPE)
    wanted = model.respond(requests, max_new_tokens=96)

    policy = load_weights(model.folder, model.config, dtype=jnp.float32)
    samples = [one.samples[0] for one in clips]
    c = gspo_tiny.get_config()
    size, ends = c.max_completion_length, model.eos_ids
    sampler = Sampler(model.processor, Sampling(temperature=0.0), size, ends, box_step=10, frozen_tower=True)
    sources = [rows.single_frames(one) for one in clips]
    sampled = sampler.sample(policy, prompts, samples, sources, jax.random.key(0), group_size=2)
    updates = Updates(model.config, UpdateShape(416 + 2 * 96, 12, 64, 2, 96), 1, 1, mask_truncated=True)
    estimates = estimates_of(policy, model.processor, updates, sampled)
    logprobs = updates.logprobs(policy, sampled)
    with pytest.raises(ValueError, match="unknown attention kernel 'flash'"):
        dataclasses.replace(updates, runtime=Runtime(kernel="flash")).logprobs(policy, sampled)
    # What the sampler says of the same tokens, and rows in which each has a prompt of its own.
    there = np.arange(96) < sampled.length[..., None]
    np.testing.assert_allclose(logprobs[there], sampled.logprobs[there], rtol=0, atol=1e-5)
    alone = UpdateShape(416 + 96, 12, 64, 1, 96)
    batch = pack_groups(sampled.prompts.inputs, sampled.responses(), model.config, alone, repeated=True)
    assert len(batch.sequence) == 4
    np.testing.assert_allclose(
        np.asarray(logprobs_of(policy, batch)), batch.by_sequence(logprobs), rtol=0, atol=1e-5
    )
    for row, response in enumerate(wanted):
        size = len(response.tokens)
        for number in range(2):
            assert sampled.tokens[row, number, :size].tolist() == response.tokens.tolist()
            assert sampled.length[row, number] == size and sampled.finished[row, number]
            np.testing.assert_allclose(
                np.exp(logprobs[row, number, :size]), response.probabilities, atol=2e-4
            )
            assert len(estimates[row][number]) == len(response.estimates) > 0
            for estimated, decoded in zip(estimates[row][number], response.estimates, strict=True):
                assert estimated.time_s == pytest.approx(decoded.time_s, abs=2e-3)
                np.testing.assert_allclose(estimated.box, decoded.box, atol=2e-3)


def test_a_frame_that_cannot_be_read_leaves_those_of_the_prompt(tmp_path, capfd):
    """A damaged video may be readable where the prompt looks, and not where a box is to be read."""
    loaded, clip = load("o3-tiny"), SyntheticClips("test", 1, 1)[0]
    made = MakePrompt(loaded.processor, loaded.config, RowShape(416, 12, 64), "plain", 10, SHAPE)
    frames, times = made.single_frames(clip).frames_at(np.array([1.0, 2.0]))
    assert frames.shape == (2, *made.single_frames(clip).size, 3) and times.tolist() == [1.0, 2.0]
    broken = tmp_path / "broken.mp4"
    write_video(clip.source.scene, broken)
    source = made.single_frames(dataclasses.replace(clip, source=VideoSource(broken)))
    broken.write_bytes(b"no video")
    frames, times = source.frames_at(np.array([1.0, 2.0]))
    assert len(frames) == len(times) == 0
    assert "boxes are read from the prompt's frames alone" in (told := capfd.readouterr().out)
    assert "broken.mp4" in told


def test_other_text_behind_the_video_stands_where_it_would_have_stood(video_model):
    prompts, _ = make_prompts(video_model, [SyntheticClips("test", 1, 1)[0]])
    text = prompts.inputs.text
    start, end = int(prompts.start[0]), int((text.segment_ids[0] > 0).sum())
    ids = text.input_ids[0, start:end].tolist()
    same = with_text(prompts, [ids])
    assert_equal(same, prompts)
    longer = with_text(prompts, [ids + [5, 6]]).inputs.text
    assert longer.next_position[0] == text.next_position[0] + 2
    assert (longer.positions[0, :, end + 1] == text.next_position[0] + 1).all()
    with pytest.raises(UserError, match="more than the 416 of a row: raise config.row_length"):
        with_text(prompts, [[5] * 400])


def test_proposals_stand_behind_a_question_as_the_tokenizer_writes_it():
    model = load("o3-tiny")
    tokenizer = copy.deepcopy(model.processor.tokenizer)
    tokenizer.backend_tokenizer.normalizer = NFC()
    processor = copy.copy(model.processor)
    processor.tokenizer = tokenizer
    sample = dataclasses.replace(
        SyntheticClips("test", 1, 1)[0].samples[0], question="Where is the cafe\u0301?"
    )
    ids = tokenizer(f"<|vision_end|>{sample.question}<|im_end|>")["input_ids"]
    text = TextRow(np.array([ids]), np.ones((1, len(ids)), int), None, None)
    prompts = PromptBatch(Batch(text), start=np.zeros(1, int), number=np.zeros(1, int))
    sampler = Sampler(processor, Sampling(), 1, (), box_step=10)
    (asked,) = sampler._asked(prompts, [sample], [[]])
    text = tokenizer.decode(asked, skip_special_tokens=False)
    wanted = with_proposals("Where is the caf\u00e9?", [], 10)
    assert text == f"<|vision_end|>{wanted}<|im_end|>"


def test_minibatches_go_on_inside_an_iteration(video_model):
    processor, config = load_processor(video_model), config_from_hf(video_model)
    rows = MakePrompt(processor, config, RowShape(416, 12, 64), "plain", 10)
    stream = Minibatches(Pipeline(SyntheticClips("train", 1, 1), [rows], batch_size=4, seed=0), 2)

    def visuals(position: int, count: int) -> list[tuple]:
        items = stream.open(position)
        taken = [next(items) for _ in range(count)]
        items.close()
        return [(i.number, i.prompts.number.tolist(), i.failures is not None) for i in taken]

    first, second = [0, 1, 2, 3], [4, 5, 6, 7]
    whole = [(0, first, True), (1, first, False), (0, second, True), (1, second, False)]
    assert visuals(0, 4) == whole
    for steps in (1, 2, 3):
        assert visuals(steps * stream.batch_size, 4 - steps) == whole[steps:]


def test_layers_survive_decoding(video_model):
    model = load_weights(video_model, config_from_hf(video_model))
    again = decoder(model)
    again.text.layers = for_training(again.text.layers)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
