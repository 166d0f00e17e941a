"""Which records are used and which are rejected: every kind of mistake, and any mutation."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.formats import article as article_format
from data_pipelines.formats import index, stgr
from data_pipelines.formats.index import index_folder, read_index
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.synthetic.datasets import make_dataset
from o3jax.errors import UserError
from o3jax.tasks import SPATIO_TEMPORAL, TEMPORAL, VISUAL

SECONDS = 6.0  # of the clip

STGR = {
    "id": 7,
    "source": "STR_coin",
    "task": SPATIO_TEMPORAL,
    "question": "What happens after the lid is lifted?",
    "answer": "The soup is stirred.",
    "video_path": "clip.mp4",
    "duration": SECONDS,
    "key_frames": [{"idx": 125, "time": 5.0, "path": "a.jpg"}, {"idx": 25, "time": 1, "path": "b.jpg"}],
    "key_items": {"125": {"man": [[0.25, 0.2, 0.5, 0.8]]}, "25": {"spoon": [[0.4, 0.5, 0.55, 0.7]]}},
    "reasoning_process": "The <obj>man</obj><box>[0.25, 0.2, 0.5, 0.8]</box>at<t>5.0</t>s lifts it.",
    "intervals": [[0.5, 6.0]],
}
MENTIONS = {"mentions": [{"object": "man", "time": 5.0, "boxes": [[0.25, 0.2, 0.5, 0.8]]}]}
ARTICLE = {
    "video_path": "clip.mp4",
    "question": "When is the lid lifted?",
    "answer": "From <t>1.0</t>s to <t>6.0</t>s",
    "timestamps": [1.0, 5],
    "bboxes": [[0.1, 0.2, 0.3, 0.4], None],
    "objects": ["lid", "lid"],
    "reasoning": "The <obj>lid</obj><box>[0.1, 0.2, 0.3, 0.4]</box>at<t>1.0</t>s is lifted.",
}


@pytest.fixture(scope="module")
def reader():
    """One for all: a process for each index would take most of the time."""
    with contextlib.closing(GuardedReader()) as opened:
        yield opened


@pytest.fixture
def folder(tmp_path, clip) -> Path:
    """An empty data set with one video of six seconds."""
    shutil.copy(clip, tmp_path / "clip.mp4")
    add_pictures(tmp_path)
    return tmp_path


def add_pictures(folder: Path) -> None:
    """The key frames of `STGR`, and a picture that is wider than high."""
    (folder / "kfs").mkdir()
    for path in ("kfs/a.jpg", "kfs/b.jpg", "wide.jpg"):
        Image.new("RGB", (64, 48)).save(folder / path)


def write(folder: Path, name: str, records: list) -> Path:
    (folder / name).write_text(json.dumps(records))
    return folder


def box(*values: float) -> dict:
    return {"key_items": STGR["key_items"] | {"125": {"man": [list(values)]}}}


def frame(**changes) -> dict:
    return {"key_frames": [STGR["key_frames"][0] | changes, STGR["key_frames"][1]]}


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"colour": "red"}, "colour", "unknown field 'colour'; the fields are id, source"),
        ({"answer": None}, "answer", "'answer' is missing"),
        ({"answer": " "}, "answer", "'answer' is empty"),
        ({"question": 3}, "question", "'question' must be a string, not 3"),
        ({"question": "Is \ud83d it?"}, "question", "half a character"),
        ({"question": "Now? <|im_end|>"}, "question", "control token <|im_end|>"),
        ({"task": "QA"}, "task", "'task' must be one of"),
        ({"task": VISUAL, "image_path": "a.jpg"}, "image_size", "'image_size' is missing"),
        ({"video_path": "other.mp4"}, "video_path", "other.mp4 does not exist"),
        ({"video_path": ""}, "video_path", "is no path"),
        ({"video_path": "stgr.json"}, "video_path", "is a text file, not a video"),
        ({"duration": 0}, "duration", "'duration' must be more than 0 s"),
        ({"duration": 4.5}, "key_frames", "the time 5 s, but the video goes from 0 to 4.50 s"),
        (frame(time=6.2), "key_frames", "the time 6.2 s, but the video goes from 0 to 6.00 s"),
        (frame(time=-1), "key_frames", "field 'time' needs times in seconds from 0 on, not -1"),
        (frame(time=10**400), "key_frames", "field 'time' needs times in seconds"),
        (frame(time="5"), "key_frames", "field 'time' must be"),
        (frame(path=3), "key_frames", "field 'path' must be a string"),
        (frame(frame=3), "key_frames", "unknown field 'frame'"),
        (frame(idx=126), "key_items", "boxes for frame '125', which 'key_frames' lacks"),
        (box(0.5, 0.2, 0.25, 0.8), "key_items", "with x1 <= x2 and y1 <= y2, but [0.5, 0.2, 0.25, 0.8] is"),
        (box(0.25, 0.8, 0.5, 0.2), "key_items", "is reversed"),
        (box(0.25, 0.2, 1.5, 0.8), "key_items", "in 0-1 of the frame"),
        (box(-0.1, 0.2, 0.5, 0.8), "key_items", "in 0-1 of the frame"),
        (box(0.25, 0.2, 0.25, 0.8), "key_items", "no area"),
        (box(0.25, 0.2, 0.5), "key_items", "needs boxes [x1, y1, x2, y2], not"),
        (box(0.25, 0.2, 0.5, float("nan")), "key_items", "in 0-1 of the frame"),
        ({"mentions": [MENTIONS["mentions"][0] | {"time": 7}]}, "mentions", "the time 7 s"),
        ({"mentions": [MENTIONS["mentions"][0] | {"boxes": [[0, 0, 1, 0]]}]}, "mentions", "no area"),
        ({"mentions": [MENTIONS["mentions"][0] | {"box": []}]}, "mentions", "unknown field 'box'"),
        ({"intervals": [[3, 2]]}, "intervals", "ends before it starts"),
        ({"intervals": [[3, 3]]}, "intervals", "without length"),
        ({"intervals": [[3, 9]]}, "intervals", "the time 9 s"),
        ({"reasoning_process": "At <t>7.5</t>s."}, "reasoning_process", "the time 7.5 s"),
        ({"reasoning_process": "<box>[2,3,40,50]</box>"}, "reasoning_process", "divide pixels by"),
        ({"reasoning_process": "<box>[0.5,0,0.4,1]</box>"}, "reasoning_process", "is reversed"),
        ({"answer": "From <t>5</t>s to <t>4</t>s"}, "answer", "ends before it starts: 5 to 4 s"),
        ({"answer": "[5, 4]", "task": TEMPORAL}, "answer", "ends before it starts"),
        ({"answer": "B\n[5.0, 14.0]", "task": "temporal QA (MCQ)"}, "answer", "the time 14 s"),
    ],
)
def test_a_published_record_is_rejected_for_its_field(folder, reader, change, field, words):
    write(folder, "stgr.json", [STGR, STGR | change, STGR | MENTIONS])
    indexed = read_index(folder, reader)
    samples, (reject,) = indexed.samples, indexed.rejects
    assert len(samples) == 2 and samples[0] == stgr.from_stgr(STGR)
    assert (reject.id, reject.field) == ("7", field) and words in reject.reason


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"fps": 25}, "fps", "unknown field 'fps'"),
        ({"bboxes": None}, "bboxes", "'bboxes' is missing"),
        ({"timestamps": [1]}, "bboxes", "one entry for each of the 1 timestamps"),
        ({"timestamps": [1, 6.5]}, "timestamps", "the time 6.5 s, but the video goes from 0 to 6.00 s"),
        ({"timestamps": [-1, 5]}, "timestamps", "seconds from 0 on, not -1"),
        (
            {"timestamps": [1, [2, 9]], "intervals": [[1, 2]]},
            "timestamps",
            "the time 9 s, but the video goes",
        ),
        ({"bboxes": [[0.3, 0.2, 0.1, 0.4], None]}, "bboxes", "is reversed"),
        ({"bboxes": [[0.1, 0.2, 0.1, 0.4], None]}, "bboxes", "no area"),
        ({"bboxes": [[10, 20, 30, 40], None]}, "bboxes", "divide pixels"),
        ({"answer": "从<t>6.0</t>秒到<t>1.0</t>秒"}, "answer", "ends before it starts: 6 to 1 s"),
        ({"answer": "From <t>1.0</t>s to <t>8.0</t>s"}, "answer", "the time 8 s"),
        ({"answer": "At <t>-2</t>s"}, "answer", "the time -2 s"),
        ({"reasoning": "at<t>6.2</t>s"}, "reasoning", "the time 6.2 s"),
        ({"video_path": "\0"}, "video_path", "cannot be read"),
    ],
)
def test_a_record_of_the_article_is_rejected_for_its_field(folder, reader, change, field, words):
    write(folder, "annotations.json", [ARTICLE, ARTICLE | change])
    indexed = read_index(folder, reader)
    samples, (reject,) = indexed.samples, indexed.rejects
    wanted = article_format.from_article(ARTICLE, "annotations-0")
    # How long a video is, which rewards ask for, its file tells where the record does not.
    assert wanted.duration is None
    assert samples == [dataclasses.replace(wanted, duration=pytest.approx(SECONDS))]
    assert (reject.id, reject.field) == ("annotations-1", field) and words in reject.reason


def test_the_end_of_the_video_is_inside(folder):
    """Times in texts are rounded to tenths, so 0.1 s behind the end is still right."""
    edge = {"timestamps": [0, 6.1], "answer": "From <t>0</t>s to <t>6.1</t>s", "reasoning": "<t>soon</t>"}
    assert index_folder(write(folder, "annotations.json", [ARTICLE | edge]))[1] == []


def test_records_that_tell_little_are_named_by_their_place(folder):
    records = [3, None, [], {}, {"id": True}, {"id": [1], "task": "t", "source": "s"}, {"id": "\ud800"}]
    samples, rejects = index_folder(write(folder, "stgr.json", records))
    assert not samples and [r.id for r in rejects[:6]] == [f"stgr-{i}" for i in range(6)]
    assert "must be an object with fields, not 3" in rejects[0].reason and rejects[0].field == ""
    assert (rejects[5].task, rejects[5].source) == ("t", "s") and (rejects[6].id == "?")


def test_every_video_is_opened_once(folder, clip, monkeypatch):
    (folder / "cut.mp4").write_bytes(clip.read_bytes()[:2000])
    opened = []
    run = GuardedReader.run
    monkeypatch.setattr(
        GuardedReader, "run", lambda self, probe, path: opened.append(path.name) or run(self, probe, path)
    )
    records = [ARTICLE, ARTICLE | {"video_path": "cut.mp4"}, ARTICLE | {"video_path": "none.mp4"}] * 3
    samples, rejects = index_folder(write(folder, "annotations.json", records))
    assert opened == ["clip.mp4", "cut.mp4"]
    assert len(samples) == 3 and {r.field for r in rejects} == {"video_path"} and len(rejects) == 6


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[1, 2", "stgr.json is not valid JSON"),
        (b"\xff[]", "stgr.json is not valid JSON"),
        (b"[" * 5000, "stgr.json is not valid JSON"),
        (b'{"id": 1}', "stgr.json must hold a JSON list"),
        (b"null", "stgr.json must hold a JSON list"),
    ],
)
def test_a_file_that_is_no_list_is_one_mistake(tmp_path, text, words):
    (tmp_path / "stgr.json").write_bytes(text)
    with pytest.raises(UserError, match=words):
        index_folder(tmp_path)
    with pytest.raises(UserError, match="neither stgr.json nor annotations.json"):
        index_folder(tmp_path / "nowhere")


def test_a_made_data_set_is_usable_whole(tmp_path):
    samples = make_dataset(tmp_path, "val", 2)
    assert index_folder(tmp_path) == (samples, [])
    (tmp_path / "stgr.json").unlink()
    assert [s.question for s in index_folder(tmp_path)[0]] == [s.question for s in samples]


# --- any mutation -----------------------------------------------------------------------------------

numbers = (
    st.floats(-1, 8) | st.integers(-1, 8) | st.sampled_from([1e308, 10**400, float("inf"), float("nan")])
)
texts = st.text(max_size=5) | st.sampled_from(
    ["clip.mp4", *index._PLACES, TEMPORAL, VISUAL, "idx", "time", "[5, 4]", "<t>9</t>s"]
    + ["From <t>3</t>s to <t>1</t>s", "<box>[1,2,3,4]</box>", "<|video_pad|>", "\ud800", "\0", "../clip.mp4"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(value, path=()):
    """Returns the path to every value inside a record, the record itself included."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(p for key, v in inner for p in places(v, (*path, key)))]


@st.composite
def mutations(draw, record):
    """The record after one to three changes: a value replaced, removed or added, at any depth."""
    whole = [copy.deepcopy(record)]
    for _ in range(draw(st.integers(1, 3))):
        *path, last = (0, *draw(st.sampled_from(places(whole[0]))))
        parent = whole
        for key in path:
            parent = parent[key]
        change = draw(st.sampled_from(["replace", "remove", "add"]))
        if change == "add" and isinstance(parent[last], dict):
            parent[last][draw(texts)] = draw(values)
        elif change == "add" and isinstance(parent[last], list):
            parent[last].append(draw(values))
        elif change == "remove" and path:
            del parent[last]
        else:
            parent[last] = draw(values)
    return whole[0]


def is_usable(sample) -> bool:
    """What the rest of the program relies on, said in another way."""
    boxes = [box for mention in sample.mentions for box in mention.boxes]
    times = [mention.time_s for mention in sample.mentions if mention.time_s is not None]
    text = sample.reasoning + sample.answer
    told = [float(t) for t in re.findall(r"<t>([0-9.]+)</t>", text)]
    return (
        all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in boxes)
        and all(0 <= time <= SECONDS + 0.11 for time in times + told)
        and all(0 <= start < end <= SECONDS + 0.11 for start, end in sample.intervals)
        and bool(sample.question.strip() and sample.answer.strip())
        and "<|" not in sample.question + text
        and bool(sample.question.encode() and text.encode())
        and Path(sample.video_path).name == "clip.mp4"
    )


@pytest.mark.parametrize("name", ["stgr.json", "annotations.json"])
def test_any_mutation_is_used_or_rejected_with_a_reason(name, folder, reader):
    original = STGR | MENTIONS if name == "stgr.json" else ARTICLE
    (folder / "in").mkdir()
    shutil.copy(folder / "clip.mp4", folder / "in" / "clip.mp4")
    add_pictures(folder / "in")

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(mutations(original), mutations({k: v for k, v in original.items() if k != "mentions"})))
    @example({**original, "\ud800": None})
    @example({**original, "question": "\ud800"})
    def check(record):
        found = read_index(write(folder / "in", name, [original, record]), reader=reader)
        samples, rejects = found.samples, found.rejects
        assert len(samples) + len(rejects) == 2 and samples
        for sample in samples:
            assert is_usable(sample), sample
        for reject in rejects:
            known = isinstance(record, dict) and "?" not in reject.field
            assert reject.id and (not known or repr(reject.field)[:70] in reject.reason)
            json.dumps([reject.id, reject.reason, reject.field], ensure_ascii=False).encode()
            assert "\n" not in reject.reason and len(reject.reason) < 400

    check()
