"""Samples of one question with estimates: at temperature 0 they are the greedy response."""

from __future__ import annotations

import copy

import jax
import numpy as np

import o3jax
from data_pipelines.synthetic.clips import SyntheticClips
from o3jax.generate.sampler import greedy
from o3jax.generate.sampling import Sampling
from o3jax.inference.respond import Steps, encode_visuals
from o3jax.inference.samples import sampling_steps
from o3jax.models.qwen3_vl import with_evidence
from tests.o3jax.inference.test_respond import EVIDENCE, prompt_of


def test_samples_at_temperature_0_are_the_greedy_response(video_model):
    model = o3jax.load(video_model)
    model.backbone = with_evidence(model.backbone, EVIDENCE, jax.random.key(1))
    request = prompt_of(model, SyntheticClips("train", 1, questions=1)[0], "When?")
    recorded = []

    def watch(asking, generate):
        def record(*args, **options):
            recorded.append(generate(*args, **options))
            return recorded[-1]

        asking.steps = Steps(asking.steps.encode, record)
        return asking

    asking = copy.copy(model)
    asking.steps = sampling_steps(2, Sampling(temperature=0.0), seed=0)
    same = watch(asking, asking.steps.generate).respond([request] * 2, max_new_tokens=6)
    plain = copy.copy(model)
    plain.steps = Steps(encode_visuals, greedy)
    (whole,) = watch(plain, greedy).respond([request], max_new_tokens=6)
    for sample in same:
        assert sample.tokens.tolist() == whole.tokens.tolist() and sample.text == whole.text
        np.testing.assert_allclose(sample.probabilities, whole.probabilities, atol=1e-5)
    samples, alone = recorded
    for row in samples.states:
        np.testing.assert_allclose(row[:5], alone.states[0, :5], atol=5e-5)


def test_samples_differ_and_follow_from_their_seed(video_model):
    model = o3jax.load(video_model)
    request = prompt_of(model, SyntheticClips("train", 1, questions=1)[0], "When?")

    def sampled(seed):
        model.steps = sampling_steps(2, Sampling(temperature=1.5), seed)
        return [said.tokens.tolist() for said in model.respond([request] * 2, max_new_tokens=6)]

    first = sampled(1)
    assert first[0] != first[1] and sampled(1) == first and sampled(2) != first
