"""Several questions about one video at once: the texts of each alone, from one encoding and one prefill."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

import o3jax
from data_pipelines.synthetic.clips import SyntheticClips
from o3jax.inference import together
from o3jax.models.qwen3_vl import with_evidence
from tests.o3jax.inference.test_respond import prompt_of
from tests.o3jax.sft.test_joint import EVIDENCE

QUESTIONS = (
    "When?",
    "Where is the red circle at 2.0 s, and what else is there to be seen?",
    "什么?",
    "Which?",
)


def ask(model, requests):
    return model.respond_together(requests, max_new_tokens=12)


@pytest.fixture(scope="module")
def plain(video_model):
    return o3jax.load(video_model)


def requests_of(model, questions=QUESTIONS):
    return about(model, 0, questions)


def about(model, number, questions):
    """Requests about the frames of one clip."""
    clip = SyntheticClips("train", 1, questions=1)[number]
    first, *others = [prompt_of(model, clip, question) for question in questions]
    return [first, *(dataclasses.replace(one, frames=first.frames) for one in others)]


def chat(model, *content):
    parts = [{"type": "video"} if text is None else {"type": "text", "text": text} for text in content]
    return model.processor.apply_chat_template([{"role": "user", "content": parts}])


@pytest.mark.parametrize(("feedback", "penalty"), [(None, 1.0), ("prompt", 1.3)])
def test_texts_are_those_of_each_question_alone(plain, feedback, penalty):
    model = o3jax.load(plain.folder)
    model.generation = dataclasses.replace(model.generation, repetition_penalty=penalty)
    if feedback is not None:
        rules = dataclasses.replace(EVIDENCE, feedback=feedback)
        model.backbone = with_evidence(model.backbone, rules, jax.random.key(1))
    requests = requests_of(model)
    alone = [model.respond([one], max_new_tokens=12)[0] for one in requests]
    found = ask(model, requests)
    assert [one.text for one in found] == [one.text for one in alone]
    assert len({one.text for one in found}) > 1
    for one, other in zip(found, alone, strict=True):
        np.testing.assert_array_equal(one.tokens, other.tokens)
        np.testing.assert_allclose(one.probabilities, other.probabilities, rtol=2e-4, atol=1e-6)


def test_several_videos_are_encoded_and_continued_together(plain, monkeypatch):
    """Their texts are those of each video alone, whatever the order of the requests."""
    rules = dataclasses.replace(EVIDENCE, feedback="prompt")
    model = o3jax.load(plain.folder)
    model.generation = dataclasses.replace(model.generation, repetition_penalty=1.3)
    model.backbone = with_evidence(model.backbone, rules, jax.random.key(1))
    one, other = (about(model, number, QUESTIONS[:2]) for number in (0, 1))
    apart = [response for some in (one, other) for response in ask(model, some)]
    encoded, continued = [], []
    encode, generate = together.encode_visuals, together.greedy_continuations
    monkeypatch.setattr(together, "encode_visuals", lambda *given: encoded.append(given) or encode(*given))
    monkeypatch.setattr(
        together, "greedy_continuations", lambda *given, **o: continued.append(given) or generate(*given, **o)
    )
    found = ask(model, [one[0], other[0], one[1], other[1]])
    for response, alone in zip([found[at] for at in (0, 2, 1, 3)], apart, strict=True):
        assert response.text == alone.text
        np.testing.assert_allclose(response.probabilities, alone.probabilities, rtol=2e-4, atol=1e-6)
    # Each text has read its own video.
    assert np.abs(apart[0].probabilities - apart[2].probabilities).max() > 1e-3
    assert len(encoded) == 1 and len(continued) == 1
    assert encoded[0][1].patches.values.shape[0] == 2 and sorted(continued[0][5]) == [0, 0, 1, 1]


def test_a_video_in_the_middle_of_its_prompt(plain, monkeypatch):
    """What begins alike is prefilled together, what does not for itself; the video is encoded once."""
    encoded, prefilled = [], []
    encode, generate = together.encode_visuals, together.greedy_continuations
    monkeypatch.setattr(together, "encode_visuals", lambda *given: encoded.append(given) or encode(*given))
    monkeypatch.setattr(
        together, "greedy_continuations", lambda *given, **o: prefilled.append(given) or generate(*given, **o)
    )
    base = requests_of(plain, ["What is it?"])[0]
    prompts = [
        chat(plain, None, "What is it?"),
        chat(plain, "This video is 6 seconds long. ", None, "\nWhen is it?"),
        chat(plain, None, "Where?"),
        chat(plain, "This video is 6 seconds long. ", None, "\nWhen was it?"),
    ]
    requests = [dataclasses.replace(base, prompt=prompt) for prompt in prompts]
    alone = [plain.respond([one], max_new_tokens=12)[0].text for one in requests]
    assert [one.text for one in ask(plain, requests)] == alone
    assert len(encoded) == 1 and len(prefilled) == 1
    monkeypatch.setattr(together, "_MAX_SLOTS", 1)  # as if the two beginnings were long
    assert [one.text for one in ask(plain, requests)] == alone and len(prefilled) == 3


def test_one_question_and_the_same_one_twice(plain):
    (base,) = requests_of(plain, ["When?"])
    alone = plain.respond([base], max_new_tokens=12)[0].text
    assert [one.text for one in ask(plain, [base])] == [alone]
    assert [one.text for one in ask(plain, [base, base])] == [alone, alone]
