"""A long video is searched coarse to fine: the right parts and frames, for what may be decoded."""

from __future__ import annotations

import dataclasses
import functools
import json
from fractions import Fraction
from types import SimpleNamespace

import av
import jax
import numpy as np
import pytest

import o3jax
from o3jax.errors import UserError
from o3jax.inference import coarse_cache, search, windows
from o3jax.inference.coarse import coarse_features, pointed_at
from o3jax.models.qwen3_vl import with_evidence
from o3jax.report import format_answer
from o3jax.video.cues import Cues
from tests.support.numbered import read_number, write_video
from tests.support.tiny import EVIDENCE

FPS = 5
LENGTH_S = 240
OPTIONS = {"preset": "veryfast", "crf": "24", "sc_threshold": "0", "keyint_min": "50"}


@pytest.fixture(scope="module")
def model(video_model):
    made = o3jax.load(video_model)
    made.backbone = with_evidence(made.backbone, EVIDENCE, jax.random.key(1))
    made.settings = dataclasses.replace(made.settings, whole_s=60.0, fps=float(FPS))
    return made


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Four minutes at 5 frames per second, numbered, with a key frame every 10 s."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    return write_video(path, range(LENGTH_S * FPS), Fraction(1, FPS), gop=50, codec_options=OPTIONS).path


def shown(monkeypatch, *intervals):
    """Makes what lies in some seconds relevant."""

    def relevance(model, features, question):
        inside = [(features.times_s >= a) & (features.times_s < b) for a, b in intervals]
        return np.where(np.any(inside, axis=0), 0.99, 0.01) if intervals else features.times_s * 0

    monkeypatch.setattr(search, "relevance", relevance)


def covers(found, start, end):
    return any(a <= start and b >= end for a, b in found)


def test_parts_are_found_and_read(model, film, monkeypatch):
    shown(monkeypatch, (61.0, 73.0), (178.0, 183.0))
    told = []
    request, clip = model.request(film, "When?", progress=told.append)
    found = request.search
    assert covers(found.intervals, 61, 73) and covers(found.intervals, 178, 183)
    assert sum(b - a for a, b in found.intervals) < 17 + 4 * 2 * search.MARGIN_S and not found.uniform
    # Both streams hold the frames of their times, and only those of the parts.
    assert [read_number(frame) for frame in clip.frames] == np.round(clip.times_s * FPS).astype(int).tolist()
    inside = [any(a - 1e-6 <= t < b for a, b in found.intervals) for t in request.dense_times]
    assert all(inside) and len(inside) >= FPS * 17 - 2
    assert request.metadata["frames_indices"].tolist() == np.round(clip.times_s * FPS).astype(int).tolist()
    frames, times = request.frames_at(request.dense_times[[3, -2]])
    assert [read_number(frame) for frame in frames] == np.round(times * FPS).astype(int).tolist()
    # 24 key frames, what was uncertain around the two, and the parts from the key frame before each.
    names = [one.name for one in found.passes]
    assert names[0] == "coarse" and names[-1] == "fine" and "refine" in names
    assert found.passes[0].read == 24 and found.decoded < 24 + 10 + 4 * 50 + 2 * 50 + (17 + 8) * FPS + 60
    assert {event.stage for event in told} >= {"coarse", "refine", "fine"}
    assert "240" in told[0].text() or "0:04:00" in told[0].text()
    assert json.loads(json.dumps(found.to_dict()))["decoded"] == found.decoded


def test_a_frame_beside_what_moves_does_not_stand_for_it():
    changes = np.full(900, 20.0)
    changes[885:894] = 5000.0  # something is there from 886.0 to 893.64
    cues = Cues(np.arange(3.84, 900, 10), 900 * 25, 25.0, changes)
    near = functools.partial(pointed_at, SimpleNamespace(cues=cues), most_decoded=1000)
    assert near(cues.keyframes) == [887.0]  # the one of 893.84 shows nothing of it
    assert near(np.array([880.0, 889.0])) == [] and near(cues.keyframes, most_decoded=50) == []


def test_a_video_that_is_read_whole_is_not_searched(model, film, monkeypatch):
    monkeypatch.setattr("o3jax.inference.reading.search", lambda *a, **k: pytest.fail("was searched"))
    request, _ = model.request(film, "When?", start_s=10.0, end_s=70.0)
    assert request.search is None and request.clock is None
    assert model.request(film, "When?", search=False)[0].search is None


def test_nothing_relevant_is_read_uniformly(model, film, monkeypatch):
    shown(monkeypatch)
    request, clip = model.request(film, "When?")
    assert request.search.uniform and "nothing seemed relevant" in request.search.why
    assert request.search.text("zh") != request.search.text("en")
    assert (
        clip.times_s.min() <= 20 and clip.times_s.max() >= LENGTH_S - 20
    )  # six frames: the middles of sixths
    assert [read_number(frame) for frame in clip.frames] == np.round(clip.times_s * FPS).astype(int).tolist()
    assert len(np.unique(np.diff(request.dense_times)[::2])) == 1  # each frame is a pair with itself


def test_what_is_left_is_read_next(model, film, monkeypatch):
    shown(monkeypatch, (61.0, 73.0), (178.0, 183.0))
    monkeypatch.setattr(model, "settings", dataclasses.replace(model.settings, whole_s=20.0))
    first, _ = model.request(film, "When is it last seen?")  # of two that do not fit beside each other
    assert covers(first.search.intervals, 178, 183) and first.search.unread == 1
    assert first.dense_times.min() > 100
    second, clip = first.further([180.0])
    assert covers(second.search.intervals, 61, 73) and covers(second.search.intervals, 178, 183)
    assert second.search.unread == 0 and second.dense_times.max() < 100
    assert [one.name for one in second.search.passes][-2:] == ["fine", "fine"]
    assert second.search.decoded == first.search.decoded + clip.decoded_frames <= second.search.budget
    assert second.further([65.0]) is None
    # What lies nowhere is none of what was read.
    assert first.further([])[0].dense_times.max() < 100


def test_what_is_nowhere_never_appears(model, film, monkeypatch):
    shown(monkeypatch)
    for question, text in (
        ("When does the red star appear?", "It never appears."),
        ("红色星形何时出现?", "它从未出现。"),
    ):
        answer = model.answer(film, question, max_new_tokens=4)
        assert answer.text == text and answer.evidence == () and answer.intervals == ()
        assert answer.needs_review and answer.label == "low" and not answer.calibrated
        assert answer.search.uniform and "absence" in answer.confidence_kind
        assert list(answer.reasons) == [answer.search.why.text(answer.language)]
        assert answer.raw and text not in answer.raw and text in format_answer(answer)
    assert "never" not in model.answer(film, "What is there?", max_new_tokens=4).text


def test_a_named_time_is_where_to_look(model, film, monkeypatch):
    shown(monkeypatch, (20.0, 30.0))
    request, _ = model.request(film, "Where is it at 2:31?")
    assert covers(request.search.intervals, 149, 153) and len(request.search.intervals) == 1
    request, _ = model.request(film, "Where is it at 151 s?", start_s=0.0, end_s=100.0)
    assert covers(request.search.intervals, 20, 30)  # of what is searched


def test_a_model_of_another_clock(model, film, monkeypatch):
    shown(monkeypatch, (61.0, 73.0))
    settings = dataclasses.replace(model.settings, clock="window", clip_s=6.0)
    monkeypatch.setattr(model, "settings", settings)
    request, clip = model.request(film, "Where is it?")
    ((start, end),) = request.search.intervals
    read = request.as_read(model.processor.tokenizer.quoted)
    assert read.dense_times.min() == 0 and 5 < read.dense_times.max() < 6
    assert read.metadata["frames_indices"].max() <= 6 * FPS
    pace = (end - start) / 6.0
    np.testing.assert_allclose(start + read.dense_times * pace, request.dense_times)
    frames, times = read.frames_at(read.dense_times[[5]])
    assert read_number(frames[0]) == int((start + times[0] * pace) * FPS + 1e-6)
    response = model.respond([request], max_new_tokens=4)[0]
    assert start <= response.times_s.min() and response.times_s.max() <= end


def test_the_second_question_decodes_nothing_of_the_first_passes(model, film, tmp_path, monkeypatch):
    monkeypatch.setenv(coarse_cache.VARIABLE, str(tmp_path))
    first = coarse_features(model, film)
    monkeypatch.setattr(model, "open_sparse", lambda *a: pytest.fail("was read"))
    again = coarse_features(model, film)
    assert again.cached and not first.cached and again.passes == first.passes
    np.testing.assert_array_equal(again.features, first.features)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    monkeypatch.undo()
    monkeypatch.setenv(coarse_cache.VARIABLE, str(tmp_path))
    for damage in (whole[:-100], b"", bytes(len(whole)), whole[:900] + bytes(50) + whole[950:]):
        file.write_bytes(damage)
        made = coarse_features(model, film)
        assert not made.cached and any("damaged" in note for note in made.notes)
        np.testing.assert_array_equal(made.features, first.features)
        assert coarse_features(model, film).cached
    other = np.load(file)
    head = json.loads(str(other["head"]))
    arrays = {name: other[name] for name in ("times_s", "features", "cells")}
    np.savez(file, head=np.array(json.dumps(head | {"key": "of another video"})), **arrays)
    made = coarse_features(model, film)
    assert not made.cached and any("changed" in note for note in made.notes)


def test_budgets(model, film):
    for budget in (0.0, -1, 2.0, float("nan")):
        with pytest.raises(UserError, match="budget must be a share"):
            model.request(film, "When?", budget=budget)
        with pytest.raises(UserError, match="budget must be a share"):
            model.request(film, "When?", end_s=5.0, budget=budget)  # too short to be searched
    with pytest.raises(UserError, match="raise the budget to 0.0") as error:
        model.request(film, "When?", budget=0.01)
    enough = float(str(error.value).rpartition(" ")[2])
    request, _ = model.request(film, "When?", budget=enough)
    assert request.search.budget == int(enough * LENGTH_S * FPS)


def test_a_part_that_is_lost_is_said(model, film, monkeypatch):
    shown(monkeypatch, (61.0, 73.0), (178.0, 183.0))
    real = windows._window

    def window(model, video, window, *rest):
        if window[0] < 100:
            raise windows.VideoError("damaged")
        return real(model, video, window, *rest)

    monkeypatch.setattr(windows, "_window", window)
    request, clip = model.request(film, "When?")
    assert clip.status == "partial" and len(request.search.intervals) == 1 and len(request.search.lost) == 1
    monkeypatch.setattr(windows, "_window", lambda *a: window(*a[:2], (0, 1), *a[3:]))
    request, _ = model.request(film, "When?")
    assert request.search.uniform and "cannot be decoded" in request.search.why


def test_a_model_without_evidence_modules_does_not_search(video_model, film):
    plain = o3jax.load(video_model)
    plain.settings = dataclasses.replace(plain.settings, whole_s=1.0)
    assert plain.request(film, "When?")[0].search is None
    with pytest.raises(UserError, match="no evidence modules"):
        coarse_features(plain, film)


@pytest.mark.parametrize("end_s", [60.0, 44.0])  # beyond whole_s, and not
def test_what_is_a_window_already_is_not_searched(model, film, monkeypatch, end_s):
    settings = dataclasses.replace(model.settings, clock="window", clip_s=6.0, whole_s=8.0)
    monkeypatch.setattr(model, "settings", settings)
    request, clip = model.request(film, "Where is it?", start_s=40.0, end_s=end_s)
    assert request.search.intervals == ((40.0, end_s),) and "short enough" in request.search.why
    assert request.search.decoded < 50 + 20 * FPS + 60 and clip.times_s.min() == 40.0
    own = request.as_read(model.processor.tokenizer.quoted)
    assert 0 == own.dense_times.min() and own.dense_times.max() < 6


def test_a_middle_that_cannot_be_decoded_is_said_and_searched_around(model, film, tmp_path, monkeypatch):
    shown(monkeypatch, (178.0, 183.0), (110.0, 115.0))
    data = bytearray(film.read_bytes())
    with av.open(str(film)) as container:
        for packet in container.demux(video=0):
            if packet.size and 95 < packet.pts * packet.time_base < 135:
                data[packet.pos + 5 : packet.pos + packet.size] = bytes(packet.size - 5)
    path = tmp_path / "torn.mp4"
    path.write_bytes(data)
    request, clip = model.request(path, "When?")
    assert covers(request.search.intervals, 178, 183) and not covers(request.search.intervals, 110, 115)
    assert {100.0, 110.0, 120.0, 130.0} <= set(request.search.lost) and clip.status == "partial"
    assert any(note.startswith("damaged") for note in clip.notes)


def test_without_key_frames_one_pass_is_made_and_said(model, tmp_path, monkeypatch):
    shown(monkeypatch, (61.0, 73.0))
    path = write_video(tmp_path / "one.mp4", range(100 * FPS), Fraction(1, FPS), gop=10_000).path
    request, clip = model.request(path, "When?", budget=0.01)  # which cannot hold here
    assert covers(request.search.intervals, 61, 73) and request.search.passes[0].decoded >= 90 * FPS
    assert any("start to end" in note for note in clip.notes)
    assert [read_number(frame) for frame in clip.frames] == np.round(clip.times_s * FPS).astype(int).tolist()
