"""Boxes read from the frame that the decoder points at: the right one, and as if it had been seen before."""

from __future__ import annotations

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange

import o3jax
from configs.checks import choose_modules
from data_pipelines.formats.sample import Sample
from data_pipelines.reading.sources import VideoSource
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.evidence import pointed_times
from data_pipelines.rows.prompts import MakePrompt
from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SceneSource, SyntheticClips
from o3jax.errors import UserError
from o3jax.generate.sampler import Generated
from o3jax.grounding import Grounding
from o3jax.inference import matching
from o3jax.inference import respond as engine
from o3jax.inputs.dense import pointed_frames
from o3jax.models.batch import stack, take
from o3jax.models.evidence import VisualTokens
from o3jax.models.layers import Initializer
from o3jax.models.qwen3_vl import EvidenceModules, VisualFeatures, with_evidence
from o3jax.prompts.mentions import mention_positions
from o3jax.train.token_loss import IGNORE
from tests.o3jax.inference.test_respond import prompt_of
from tests.o3jax.sft.test_joint import EVIDENCE, ROW, SHAPE
from tests.support.batches import assert_equal, changed
from tests.support.commands import run_command
from tests.support.numbered import read_number

POINTED = dataclasses.replace(EVIDENCE, box_frames="pointed")
GROUPS = ROW.frame_pairs  # of the language stream
ROOMY = dataclasses.replace(ROW, frame_pairs=2 * GROUPS)  # three questions, a frame for each


@pytest.fixture(scope="module")
def loaded(video_model):
    """The tiny model, its modules of random weights so wide that what they read has an effect."""
    model = o3jax.load(video_model)
    model.backbone = with_evidence(model.backbone, EVIDENCE, jax.random.key(1))
    config = model.backbone.config
    model.backbone.evidence = EvidenceModules(config, Initializer(jax.random.key(1), std=0.3))
    return model


def reading(loaded, **rules):
    """Returns the model with other rules of its modules."""
    model = copy.copy(loaded)
    model.backbone = copy.copy(loaded.backbone)
    evidence = dataclasses.replace(EVIDENCE, **rules)
    model.backbone.config = dataclasses.replace(loaded.config, evidence=evidence)
    return model


@pytest.fixture(scope="module")
def clip():
    return SyntheticClips("train", 1, questions=3)[0]


def rows_of(loaded, shape, box_frames, **fields):
    config = dataclasses.replace(loaded.config, evidence=dataclasses.replace(EVIDENCE, box_frames=box_frames))
    return MakeRow(loaded.processor, config, shape, evidence=dataclasses.replace(SHAPE, **fields))


# --- training rows ---


def test_a_row_shows_the_frames_of_its_mentions(loaded, clip):
    stream = rows_of(loaded, ROW, "stream").map(clip)
    row = rows_of(loaded, ROOMY, "pointed").map(clip)
    patches, places = row.inputs.patches, row.inputs.places
    shown = {"patches": take(patches, slice(GROUPS)), "places": take(places, slice(GROUPS))}
    # The text and what it shows are the same.
    assert_equal(dataclasses.replace(row, inputs=dataclasses.replace(row.inputs, **shown)), stream)
    assert row.inputs.text.visual_index.max() < GROUPS * ROW.patches // 4

    times = places.times[GROUPS:]
    truth = [sample.mentions[0].time_s for sample in clip.samples]
    assert 0 < np.abs(times - truth).max() and np.all(np.abs(times - truth) <= 0.12)
    np.testing.assert_allclose(times * 25, np.rint(times * 25), atol=1e-4)
    again = rows_of(loaded, ROOMY, "pointed").map(clip)
    np.testing.assert_array_equal(again.inputs.places.times, places.times)
    # The same frames given to the processor as a video, each of them twice.
    frames = np.repeat(clip.source.scene.render(times.astype(float) + 1e-4), 2, axis=0)
    medium = loaded.processor.read_video(frames, {"fps": 25.0, "frames_indices": range(6)})
    np.testing.assert_array_equal(rearrange(patches.values[GROUPS:], "t p c -> (t p) c"), medium.patches)
    layout = dataclasses.replace(patches, values=None)  # as that of the stream
    assert_equal(take(layout, slice(GROUPS, None)), take(layout, slice(GROUPS)))
    for array in (places.centres, places.clip):
        np.testing.assert_array_equal(array[GROUPS:], array[:GROUPS])


def test_a_file_s_frames_are_read_at_the_mentions(loaded, numbered):
    mentions = tuple(Grounding("red", time, boxes=((0.1, 0.1, 0.5, 0.5),)) for time in (0.0, 2.35, 3.99))
    nowhere = (Grounding("blue", 1.0), Grounding("green", None, boxes=((0.1, 0.1, 0.5, 0.5),)))
    sample = Sample("s", "test", "t", "When?", "x", duration=4.0, mentions=mentions + nowhere)
    rows = rows_of(loaded, RowShape(512, 5, 12), "pointed", patches=24, mentions=5)
    row = rows.map(Clip((sample,), VideoSource(numbered.path)))
    assert rows.cost(Clip((sample,), VideoSource(numbered.path))).frame_pairs == 5
    pictures = rearrange(
        row.inputs.patches.values,
        "t (h w i j) (c g y x) -> t g (h i y) (w j x) c",
        h=1,
        w=3,
        i=2,
        j=2,
        c=3,
        g=2,
        y=16,
    )
    told = [[read_number(picture) for picture in pair] for pair in pictures[2:]]
    assert told == [[n, n] for n in np.rint(row.inputs.places.times[2:] * 10).astype(int)]
    assert np.abs(row.inputs.places.times[2:] - [0.0, 2.35, 3.9]).max() <= 0.151


def test_times_differ_between_samples_and_stay_in_the_video():
    def sample(name, time):
        return Sample(name, "test", "t", "?", "x", mentions=(Grounding("x", time, boxes=((0, 0, 1, 1),)),))

    frames = np.arange(150) / 25
    drawn = [pointed_times([sample(str(n), 3.0)], frames)[0] for n in range(40)]
    assert len(set(drawn)) > 3 and 2.88 <= min(drawn) < 2.95 and 3.05 < max(drawn) <= 3.12
    late = pointed_times([sample(str(n), 6.5) for n in range(9)], frames)
    assert late.tolist() == [frames[-1]] * 9
    assert pointed_times([sample("x", None)], frames).shape == (0,)


def test_clips_of_a_row_keep_their_frames_apart(loaded):
    """The groups of both texts come first, then the frames of both clips."""
    clips = [SyntheticClips("train", 1, questions=n)[n] for n in (1, 2)]
    rows = rows_of(loaded, RowShape(768, 9, 16, clips=2), "pointed", frame_pairs=160)
    row, alone = rows.map(clips), [rows.map(clip) for clip in clips]
    patches, places = row.inputs.patches, row.inputs.places
    assert places.clip.tolist() == [1] * 3 + [2] * 3 + [1] + [2] * 2
    for number, (one, theirs) in enumerate(zip(alone, (1, 2), strict=True), start=1):
        mine, their = places.clip == number, slice(3 + theirs)
        assert_equal(take(patches, mine), take(one.inputs.patches, their))
        unshifted = dataclasses.replace(places, clip=None, clock=None)
        alone_places = dataclasses.replace(one.inputs.places, clip=None, clock=None)
        assert_equal(take(unshifted, mine), take(alone_places, their))
        clock = places.clock - places.times
        assert np.ptp(clock[mine]) < 1e-5
    assert clock[0] == 0 and clock[-1] > 6


def test_what_has_no_room_or_cannot_be_read(loaded, clip, monkeypatch):
    small = rows_of(loaded, dataclasses.replace(ROW, frame_pairs=5), "pointed")
    with pytest.raises(
        UserError, match="needs 6 frame pairs, more than the 5 .* raise config.row_frame_pairs"
    ):
        small.map(clip)
    prompts = MakePrompt(loaded.processor, small.config, ROW, evidence=SHAPE)
    one = dataclasses.replace(clip, samples=clip.samples[:1])
    assert (prompts.map(one).inputs.patches.length > 0).sum() == GROUPS  # no truth in a prompt

    reads, frames_at = [], SceneSource.frames_at

    def torn(self, times_s, *args):
        reads.append(times_s)
        if len(reads) == 2:  # the frames that boxes are read from
            raise UserError("torn")
        return frames_at(self, times_s, *args)

    monkeypatch.setattr(SceneSource, "frames_at", torn)
    row = rows_of(loaded, ROOMY, "pointed").map(clip)
    assert (
        len(reads) == 2
        and bytes(row.failures.error[0, :4]) == b"torn"
        and not row.inputs.patches.values.any()
    )
    assert (row.labels == IGNORE).all() and (row.inputs.patches.length > 0).sum() == 6


# --- the model ---


def test_a_frame_added_later_is_as_one_seen_from_the_start(loaded, clip):
    row = rows_of(loaded, ROOMY, "pointed").map(clip)
    # As when a question is answered: one video to a row.
    names = ("questions.clip", "dense.clip", "places.clip")
    batch = take(changed(row.inputs, dict.fromkeys(names)), None)
    times = row.inputs.places.times[GROUPS:].astype(np.float64)
    frames, video = clip.source.scene.render(times + 1e-4), loaded.processor.video_config
    added = pointed_frames(frames, times, (64, 64), video, loaded.config.vision, frame_pairs=4, patches=16)
    added = take(added, None)
    rng = np.random.default_rng(0)
    states = rng.standard_normal((3, 4, loaded.config.text.hidden_size)).astype(np.float32)
    valid, everything = np.ones((3, 4), bool), np.ones((3, SHAPE.frame_pairs), bool)

    @jax.jit
    def run(model, batch, added):
        whole = model.encode_visuals(batch)
        stream = jax.tree.map(lambda x: x[:, :GROUPS], whole.visual)
        later = model.add_frames(dataclasses.replace(whole, visual=stream), added)
        return [model.estimate(states, valid, visuals, everything) for visuals in (whole, later)]

    expected, estimate = run(loaded.backbone, batch, added)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), estimate, expected)
    assert np.ptp(estimate.box, axis=(0, 1))[1:].min() > 1e-2


# --- answers ---

TEXTS = ("<obj>red car</obj> and <obj>dog</obj>", "nothing", "a <obj>dog</obj>")


@pytest.fixture
def asked(loaded, monkeypatch):
    """Returns (model, requests) -> estimates, and what stands behind the questions in the prompts.

    The text is given, and so are its states.
    """
    prompts = []

    def say(backbone, batch, ending, visuals):
        for ids, real in zip(batch.text.input_ids, batch.text.segment_ids, strict=True):
            prompts.append(loaded.processor.decode(ids[real > 0], skip_special_tokens=False))
        ids = [loaded.processor.tokenizer(text)["input_ids"] for text in TEXTS]
        tokens = np.zeros((3, max(map(len, ids))), np.int32)
        states = np.zeros((*tokens.shape, loaded.config.text.hidden_size), np.float32)
        for row, mine in enumerate(ids):
            tokens[row, : len(mine)] = mine
            for place in mention_positions(loaded.processor.tokenizer, mine):
                states[row, place] = np.random.default_rng((row, place)).standard_normal(states.shape[-1])
        return Generated(tokens, np.zeros(tokens.shape, np.float32), np.array(list(map(len, ids))), states)

    monkeypatch.setattr(engine, "greedy", say)
    monkeypatch.setattr(matching, "candidate_intervals", lambda relevance, times: [(0.0, 10.0)])

    def ask(model, requests):
        prompts.clear()
        responses = model.respond(requests, max_new_tokens=8)
        told = zip(prompts, requests, strict=True)
        lines = [text.partition(r.question)[2].split("<|im_end|>")[0] for text, r in told]
        return [response.estimates for response in responses], lines

    return ask


@pytest.fixture
def requests(loaded):
    """Three questions about three clips, which write down when they are looked at again."""
    looked = []

    def request(number):
        clip = SyntheticClips("train", 1, questions=1)[number]

        def frames_at(times):
            looked.append((number, times))
            return clip.source.scene.render(times + 1e-4), times

        question = clip.samples[0].question
        return dataclasses.replace(prompt_of(loaded, clip, question), frames_at=frames_at), clip.source.scene

    made = [request(number) for number in range(3)]
    return [one for one, _ in made], [scene for _, scene in made], looked


def still(request, scene, times):
    """Returns the request with no other frames than these in its language stream, each of them twice."""
    times = np.resize(np.sort(times), 3).repeat(2)
    metadata = {"fps": 25.0, "frames_indices": np.rint(25 * times).astype(int)}
    return dataclasses.replace(request, frames=scene.render(times + 1e-4), metadata=metadata)


def test_boxes_are_read_from_the_frame_pointed_at(loaded, asked, requests):
    """Proposals' and mentions' alike: as from a language stream of that frame alone."""
    requests, scenes, looked = requests
    plain, lines = asked(reading(loaded, feedback="prompt"), requests)
    assert not looked
    estimates, read = asked(reading(loaded, feedback="prompt", box_frames="pointed"), requests)
    assert [len(mine) for mine in estimates] == [2, 0, 1]
    # All questions have proposals; the second one's text has no mention, so nothing more is read of it.
    assert [number for number, _ in looked] == [0, 1, 2, 0, 2]
    for row, times in looked[3:]:
        told = [decoded.time_s for decoded in estimates[row]]
        np.testing.assert_allclose(told, [decoded.time_s for decoded in plain[row]], atol=1e-5)
        frames = requests[row].dense_times
        assert sorted({frames[np.abs(frames - t).argmin()] for t in told}) == times.tolist()
    assert len(looked[3][1]) == 2  # two mentions at two moments

    def from_stills(looked):
        stills = [still(requests[row], scenes[row], times) for row, times in looked]
        return asked(reading(loaded, feedback="prompt"), stills)

    _, expected = from_stills(looked[:3])
    assert read == expected != lines
    expected, _ = from_stills([looked[3], looked[1], looked[4]])
    for row, m in ((0, 0), (0, 1), (2, 0)):
        np.testing.assert_allclose(estimates[row][m].box, expected[row][m].box, atol=1e-4)
        np.testing.assert_allclose(estimates[row][m].confidence, expected[row][m].confidence, atol=1e-4)
        assert np.abs(np.subtract(estimates[row][m].box, plain[row][m].box)).max() > 1e-3


def test_a_file_is_looked_at_again(loaded, numbered):
    request, _ = loaded.request(numbered.path, "When?")
    frames, times = request.frames_at(request.dense_times[[3, 21, 39]])
    assert [read_number(frame) for frame in frames] == [3, 21, 39]
    np.testing.assert_allclose(times, [0.3, 2.1, 3.9])


# --- the switch ---


def test_the_switch(video_model, capfd):
    config = {"feedback": None, "box_frames": None}
    assert choose_modules(config, asked=EVIDENCE, have=POINTED) == POINTED
    assert choose_modules(config | {"box_frames": "stream"}, asked=EVIDENCE, have=POINTED) == EVIDENCE
    done = run_command(capfd, "evaluate", f"--model_path={video_model}", "--box_frames=pointed")
    assert done.code == 2 and done.err.count("\n") == 1
    assert f"--box_frames: {video_model} has no evidence modules; leave the flag out" in done.err


def test_weights_may_be_stored_narrower_than_they_compute():
    """On a CPU bfloat16 weights stay so and compute in float32: what was encoded without them has that type
    too."""
    model = o3jax.load("o3-tiny", dtype=jnp.bfloat16)
    backbone, video = model.backbone, model.processor.video_config
    assert backbone.vision.merger.fc2.dtype == jnp.bfloat16
    size, width = (128, 128), backbone.config.vision.out_hidden_size
    sizes = {"frame_pairs": 1, "patches": 64}
    one = pointed_frames(
        np.zeros((1, *size, 3), np.uint8), np.zeros(1), size, video, backbone.config.vision, **sizes
    )
    frames = stack([one])
    tokens = np.zeros((1, 1, frames.cells.shape[1], width), np.float32)
    there = VisualTokens(
        tokens, np.zeros((1, 1), np.float32), frames.cells[:, None], np.ones(tokens.shape[:3], bool)
    )
    visuals = VisualFeatures(tokens[:, 0], tokens[None, :, 0][:0], None, there)
    added = jax.eval_shape(lambda m, v, f: m.add_frames(v, f), backbone, visuals, frames)
    assert added.visual.tokens.shape == (1, 2, *tokens.shape[2:]) and added.visual.tokens.dtype == jnp.float32
