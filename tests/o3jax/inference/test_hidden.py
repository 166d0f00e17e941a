"""Which frames two more passes show, and what was seen of a response."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from o3jax.grounding import Grounding
from o3jax.inference.hidden import ask_again, evidence_of, observe, only, without
from o3jax.inference.locate import DecoderEstimate
from o3jax.inference.respond import Request, Response
from o3jax.notes import Note


def request(seconds=8.0, dense=True):
    """Returns a request about frames that hold their own number: 2 per second, and 25 in the dense stream."""
    shown = np.arange(0, seconds * 25, 12.5).astype(int)
    times = np.arange(int(seconds * 25)) / 25

    def frames(count):
        return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 2, 2, 3))

    streams = {"dense_frames": frames(len(times)), "dense_times": times} if dense else {}
    return Request("?", "?", frames(len(shown)), {"fps": 25.0, "frames_indices": shown}, **streams)


def test_only_the_evidence_is_shown_in_whole_pairs():
    asked = request()
    found = only(asked, [(3.0, 4.0)])
    # Frames of pairs that touch 2.7-4.3 s: at 0.5 s steps 3.0, 3.5 and 4.0 s, with their partners.
    assert found.metadata["frames_indices"].tolist() == [75, 87, 100, 112]
    assert found.frames[:, 0, 0, 0].tolist() == [6, 7, 8, 9]
    assert found.dense_times.min() >= 2.7 - 0.08 and found.dense_times.max() <= 4.3 + 0.08
    assert len(found.dense_times) % 2 == 0 and len(found.dense_frames) == len(found.dense_times)


def test_hidden_evidence_leaves_nothing_of_itself():
    asked = request()
    found = without(asked, [(3.0, 4.0), (6.0, 6.5)])
    times = found.metadata["frames_indices"] / 25
    for shown in (times, found.dense_times):
        assert not ((shown >= 3.0) & (shown <= 4.0)).any() and not ((shown >= 6.0) & (shown <= 6.5)).any()
        assert (shown < 3).any() and (shown > 7).any()
    # Pairs stay the pairs that they were: none has one frame from before and one from behind.
    numbers = found.dense_frames[:, 0, 0, 0].reshape(-1, 2)
    assert (numbers[:, 0] % 2 == 0).all() and (np.diff(numbers) == 1).all()


@pytest.mark.parametrize("dense", [True, False])
def test_nothing_to_show_and_nothing_to_hide(dense):
    asked = request(dense=dense)
    assert without(asked, [(0.0, 8.0)]) is None and only(asked, []) is None
    assert without(asked, []).frames.shape == asked.frames.shape
    assert (only(asked, [(1.0, 2.0)]).dense_frames is not None) == dense


def response(text, *estimates):
    tokens = np.array([ord(c) for c in text])
    return Response(tokens, np.full(len(tokens), 0.5), text, estimates)


def test_evidence_is_the_decoders_interval_or_around_what_the_text_names():
    estimate = DecoderEstimate(time_s=3.0, interval=(2.9, 3.1), boxes=(), confidence=0.9, spread_s=0.1)
    assert evidence_of(response("", estimate)) == [(2.5, 3.5)]  # never less than a second
    text = "<obj>a</obj>at<t>4.0</t>s <answer>From <t>1.0</t>s to <t>6.0</t>s</answer>"
    assert evidence_of(response(text)) == [(1.0, 6.0), (3.5, 4.5)]


def test_each_pass_is_asked_at_once_and_comes_back_in_its_place():
    rows = []

    def respond(requests):
        rows.append(len(requests))
        return [response(f"<answer>{r.frames[0, 0, 0, 0]}</answer>") for r in requests]

    first = DecoderEstimate(time_s=4.0, interval=(3.5, 4.5), boxes=(), confidence=0.9, spread_s=0.1)
    whole = DecoderEstimate(time_s=4.0, interval=(0.0, 8.0), boxes=(), confidence=0.9, spread_s=0.1)
    found = ask_again(
        respond, [request()] * 3, [response("", first), response("", whole), response("nothing")]
    )
    # Nothing to hide in the second; the third has no evidence to show, and hides none.
    assert rows == [2, 2] and found == [("6", "0"), ("0", None), (None, "0")]


def test_what_was_seen():
    text = "<answer>ab</answer>"
    processor = SimpleNamespace(decode=lambda tokens: "".join(map(chr, tokens)))
    said = response(text, DecoderEstimate(time_s=1.0, boxes=(), confidence=0.9, spread_s=0.2))
    seen = observe(processor, "?", said, 8.0, [Note("loop")], True, ("a", None))
    assert seen.ends == tuple(range(1, len(text) + 1)) and seen.probabilities == (0.5,) * len(text)
    assert seen.spreads_s == (0.2,) and isinstance(seen.estimates[0], Grounding)
    assert (seen.kept, seen.hidden, seen.faults) == ("a", None, ("the response repeats itself",))
    assert observe(processor, "?", said, 8.0, (), False).kept is None
