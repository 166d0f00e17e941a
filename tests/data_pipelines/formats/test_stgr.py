"""Published records against values worked out by hand, and there and back again; made data sets."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.formats import published, stgr
from data_pipelines.formats.fields import RecordError
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from data_pipelines.synthetic.published import GROUPS
from o3jax.grounding import Grounding
from o3jax.prompts import templates
from o3jax.tasks import FREE_FORM, MCQ, SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL

SPATIAL = {
    "id": 7,
    "source": "STR_plm_rdcap",
    "task": SPATIO_TEMPORAL,
    "question": "What does the man do?",
    "answer": "He stirs the soup.",
    "video_path": "sav_1.mp4",
    "key_frames": [
        {"idx": 150, "time": 5.0, "path": "sav_1_150.jpg"},
        {"idx": 275, "time": 9.2, "path": "sav_1_275.jpg"},
    ],
    "key_items": {"150": {"man": [[0.25, 0.2, 0.5, 0.8]]}, "275": {"spoon": [[0.4, 0.5, 0.55, 0.7]]}},
    "reasoning_process": "The <obj>man</obj><box>[0.25, 0.2, 0.5, 0.8]</box>at<t>5.0</t>s lifts it.",
}
PERIOD = {
    "id": "t",
    "source": "timerft",
    "task": TEMPORAL,
    "question": "When?",
    "answer": "[10.0, 20.5]",
}
PERIOD |= {"video_path": "x.mp4"}
CHOICE = PERIOD | {"source": "TVG_activitynet", "task": TEMPORAL_MCQ, "answer": "B\n[3.25, 12]"}
PICTURE = {
    "id": "v",
    "source": "gqa",
    "task": VISUAL,
    "question": "Where is the pedestrian?",
    "answer": "<obj>pedestrian</obj><box>[421, 187, 443, 239]</box>",
    "image_path": "1.jpg",
    "image_size": [640, 478],
}


def read(record: dict) -> Sample:
    return stgr.from_stgr(record, in_published_tree=True)


# --- published --------------------------------------------------------------------------------------


def test_a_spatio_temporal_record():
    sample = read(SPATIAL)
    assert sample.video_path == "videos/stgr/plm/videos/sav_1.mp4"
    assert sample.key_frames == (
        KeyFrame(150, 5.0, "videos/stgr/plm/kfs/sav_1_150.jpg"),
        KeyFrame(275, 9.2, "videos/stgr/plm/kfs/sav_1_275.jpg"),
    )
    assert sample.mentions == (
        Grounding("man", 5.0, boxes=((0.25, 0.2, 0.5, 0.8),)),
        Grounding("spoon", 9.2, boxes=((0.4, 0.5, 0.55, 0.7),)),
    )
    assert sample.intervals == () and sample.answer == "He stirs the soup."
    assert templates.response(sample) == (
        "<think>The <obj>man</obj><box>[250,200,500,800]</box>at<t>5.0</t>s lifts it.</think>\n"
        "<answer>He stirs the soup.</answer>"
    )
    assert stgr.to_published(sample, "sft") == SPATIAL | {"id": "7"}


def test_temporal_answers_become_what_the_prompt_asks_for():
    sample = read(PERIOD)
    assert sample.answer == "From <t>10.0</t>s to <t>20.5</t>s" and sample.intervals == ((10.0, 20.5),)
    assert stgr.to_published(sample, "rl")["answer"] == "[10.0, 20.5]"
    assert stgr.to_published(sample, "sft")["answer"] == "From <t>10.0</t>s to <t>20.5</t>s"
    assert read(PERIOD | {"answer": "From <t>10.0</t>s to <t>20.5</t>s"}) == sample

    choice = read(CHOICE)  # the text has tenths, the interval what was given
    assert choice.answer == "From <t>3.2</t>s to <t>12.0</t>s.\nCorrect Option: B"
    assert choice.intervals == ((3.25, 12.0),) and choice.video_path == "videos/tvg_r1/x.mp4"
    assert stgr.to_published(choice, "rl")["answer"] == "B\n[3.25, 12.0]"


def test_boxes_of_visual_questions_are_pixels_on_disk():
    sample = read(PICTURE)
    assert sample.image_path == "videos/gqa/1.jpg" and sample.image_size == (640, 478)
    ((box,),) = (m.boxes for m in sample.mentions)
    # 421/640, 187/478, 443/640, 239/478
    assert box == pytest.approx((0.6578125, 0.3912134, 0.6921875, 0.5), abs=1e-6)
    # 657.8, 391.2, 692.2, 500.0 per mille
    assert "<box>[658,391,692,500]</box>" in templates.response(sample)
    assert stgr.to_published(sample, "rl") == PICTURE
    thought = PICTURE | {"source": "TreeVGR", "reasoning_process": "Look: <box>[0, 0, 640, 478]</box>."}
    sample = read(thought)
    assert sample.image_path == "videos/treevgr/1.jpg"
    assert "<think>Look: <box>[0,0,1000,1000]</box>.</think>" in templates.response(sample)
    assert stgr.to_published(sample, "sft") == thought


@pytest.mark.parametrize(
    ("source", "task", "media", "key_frames"),
    [
        (
            "videoespresso_train_video",
            SPATIO_TEMPORAL,
            "videos/videoespresso/videos/",
            "videos/videoespresso/kfs/",
        ),
        ("STR_plm_rdcap", SPATIO_TEMPORAL, "videos/stgr/plm/videos/", "videos/stgr/plm/kfs/"),
        (
            "STR_coin",
            SPATIO_TEMPORAL,
            "videos/stgr/temporal_grounding/videos/",
            "videos/stgr/temporal_grounding/kfs/",
        ),
        ("timerft", TEMPORAL, "videos/timerft/", None),
        ("TVG_tacos", TEMPORAL, "videos/tvg_r1/", None),
        ("TVG_qvhighlight", TEMPORAL_MCQ, "videos/tvg_r1/", None),
        ("videor1_mcq", MCQ, "videos/videor1/", None),
        ("videor1_free_from", FREE_FORM, "videos/videor1/", None),
        ("gqa", VISUAL, "videos/gqa/", None),
        ("TreeVGR", VISUAL, "videos/treevgr/", None),
    ],
)
def test_the_root_follows_the_source(source, task, media, key_frames):
    found = published.roots(source, task)
    assert found.media == media and key_frames in (None, found.key_frames)


@pytest.mark.parametrize(
    ("record", "change", "field", "words"),
    [
        (SPATIAL, {"source": "mine"}, "source", "nothing published has the source 'mine'"),
        (SPATIAL, {"duration": 3.0}, "duration", "unknown field 'duration'"),
        (SPATIAL, {"key_items": {"150": {"man": [[25, 20, 50, 80]]}}}, "key_items", "divide pixels"),
        (SPATIAL, {"key_frames": [{"idx": 150, "time": 5.0}]}, "key_items", "which 'key_frames' lacks"),
        (
            SPATIAL,
            {"key_frames": [{"idx": 150, "time": 5.0}], "key_items": {}},
            "key_frames",
            "field 'path' is missing",
        ),
        (PERIOD, {"answer": "[20, 10]"}, "answer", "ends before it starts: 20 to 10 s"),
        (PERIOD, {"answer": "[-1, 10]"}, "answer", "a video starts at 0"),
        (PERIOD, {"answer": "soon"}, "answer", "needs an interval"),
        (PERIOD, {"answer": "[nan, 10]"}, "answer", "needs an interval"),
        (CHOICE, {"answer": "B"}, "answer", "needs an interval"),
        (PICTURE, {"image_size": None}, "image_size", "'image_size' is missing"),
        (PICTURE, {"image_path": None}, "image_path", "'image_path' is missing"),
        (PICTURE, {"answer": "<box>[0.1, 0.2, 0.5, 0.9]</box>"}, "answer", "multiply by 640 and 478"),
        (PICTURE, {"answer": "<box>[600, 2, 650, 9]</box>"}, "answer", "outside of image_size [640, 478]"),
        (PICTURE, {"answer": "<box>[60, 2, 50, 9]</box>"}, "answer", "reversed"),
    ],
)
def test_a_published_record_that_breaks_a_rule_is_refused(record, change, field, words):
    read(record)
    with pytest.raises(RecordError, match=re.escape(words)) as error:
        read(record | change)
    assert error.value.field == field


tenths = st.integers(0, 600).map(lambda n: n / 10)
pairs = st.tuples(tenths, tenths).map(sorted).map(tuple)
words = st.text("abc ?", min_size=1, max_size=9)


@st.composite
def publishable(draw):
    """Samples that a published record can express whole."""
    source, task, _, _ = draw(st.sampled_from(GROUPS))
    roots = published.roots(source, task)
    common = {"id": draw(words), "source": source, "task": task, "question": draw(words)}
    common["reasoning"] = draw(words)
    if task == VISUAL:
        width, height = draw(st.tuples(st.integers(2, 5000), st.integers(2, 5000)))
        corners = draw(st.tuples(st.integers(0, width - 2), st.integers(0, height - 2)))
        box = [*corners, width, height]
        text = f"<obj>{draw(st.sampled_from(['a', 'b c']))}</obj><box>{box}</box>"
        common["reasoning"] = ""
        record = {"id": common["id"], "source": source, "task": task, "question": common["question"]}
        record |= {"answer": text, "image_path": "a.jpg", "image_size": [width, height]}
        return read(record)
    common["video_path"] = roots.media + draw(words)
    if task == SPATIO_TEMPORAL:
        times = draw(st.lists(tenths, min_size=1, max_size=4, unique=True))
        frames = tuple(KeyFrame(round(25 * t), t, roots.key_frames + f"{t}.jpg") for t in times)
        mentions = tuple(
            Grounding(draw(words), t, boxes=((0.1, 0.2, 0.3, 0.4),) * draw(st.integers(1, 2))) for t in times
        )
        return Sample(**common, answer=draw(words), key_frames=frames, mentions=mentions)
    if task in (MCQ, FREE_FORM):
        return Sample(**common, answer=draw(words))
    start, end = pair = draw(pairs)
    answer = f"From <t>{start}</t>s to <t>{end}</t>s"
    if task == TEMPORAL_MCQ:
        answer += f".\nCorrect Option: {draw(st.sampled_from('ABCD'))}"
    return Sample(**common, answer=answer, intervals=(pair,))


@settings(max_examples=200, deadline=None)
@given(publishable(), st.sampled_from(["sft", "rl"]))
def test_any_publishable_sample_comes_back(sample, stage):
    record = json.loads(json.dumps(stgr.to_published(sample, stage)))
    back = read({"reasoning_process": sample.reasoning} | record if stage == "rl" else record)
    assert back == sample
    assert stgr.to_published(back, stage) == record


mentions = st.builds(
    Grounding, words, tenths, boxes=st.just(((0.1, 0.2, 0.3, 0.4),)), interval=st.none() | pairs
)
candidates = st.builds(
    Candidate,
    answer=words,
    preference=st.floats(-9, 9),
    reasoning=words,
    mentions=st.lists(mentions, max_size=2).map(tuple),
    intervals=st.lists(pairs, max_size=2).map(tuple),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.builds(KeyFrame, st.integers(0, 999), tenths, st.none() | st.text(max_size=9)), max_size=3),
    st.lists(st.text("kfs/.a", max_size=8), max_size=2),
    st.lists(candidates, max_size=3),
    st.lists(mentions, max_size=3),
)
def test_our_own_record_holds_everything(frames, paths, candidates, mentions):
    frames = frames + [KeyFrame(1, 1.0, "kfs/" + path) for path in paths]
    frames += [KeyFrame(2, 2.0, path) for path in paths]
    evidence = {"key_frames": tuple(frames), "candidates": tuple(candidates), "mentions": tuple(mentions)}
    sample = Sample("1", "mine", SPATIO_TEMPORAL, "q", "a", "v.mp4", **evidence)
    assert stgr.from_stgr(json.loads(json.dumps(stgr.to_stgr(sample)))) == sample
