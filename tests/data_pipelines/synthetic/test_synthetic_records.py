"""Records of the synthetic world and of others, there and back; data sets of files."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.formats import article as article_format
from data_pipelines.formats import fields, stgr
from data_pipelines.formats.sample import Sample
from data_pipelines.synthetic.datasets import make_dataset
from data_pipelines.synthetic.questions import make_samples
from data_pipelines.synthetic.scenes import make_scene
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.tasks import SPATIO_TEMPORAL, TASKS, VISUAL
from tests.support.paths import ROOT
from tests.support.records import load_article, load_stgr
from tests.support.worlds import scenes

unit = st.floats(0, 1)
boxes = st.tuples(unit, unit, unit, unit).map(lambda b: (*map(min, b[:2], b[2:]), *map(max, b[:2], b[2:])))
seconds = st.floats(0, 1e4)
mentions = st.builds(
    Grounding,
    st.text(max_size=3),
    st.none() | seconds | st.sampled_from([1.0, 1.01, 2.0]),
    boxes=st.lists(boxes, max_size=2).map(tuple),
)
any_samples = st.builds(
    Sample,
    id=st.text(),
    source=st.text(),
    task=st.sampled_from(TASKS),
    question=st.text(),
    answer=st.text(),
    video_path=st.text(),
    image_path=st.text(),
    image_size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    duration=st.none() | seconds,
    reasoning=st.text(),
    mentions=st.lists(mentions, max_size=4).map(tuple),
    intervals=st.lists(st.tuples(seconds, seconds).map(sorted).map(tuple), max_size=3).map(tuple),
    language=st.sampled_from(["en", "zh"]),
    kind=st.text(max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(any_samples)
def test_any_sample_survives_the_stgr_record(sample):
    assert stgr.from_stgr(json.loads(json.dumps(stgr.to_stgr(sample)))) == sample


def test_synthetic_samples_need_no_field_beside_the_published_ones_for_their_evidence():
    for level in (1, 2, 3):
        for scene in scenes(level, 20, questions=5):
            for sample in make_samples(scene):
                record = stgr.to_stgr(sample)
                assert "mentions" not in record
                assert stgr.from_stgr(json.loads(json.dumps(record))) == sample
                for frame in record["key_frames"]:
                    assert frame["idx"] == math.floor(frame["time"] * 25 + 0.5)
                    assert record["key_items"][str(frame["idx"])]
                article = article_format.to_article(sample)
                back = article_format.from_article(json.loads(json.dumps(article)), sample.id)
                assert article_format.to_article(back) == article
                for field in ("id", "question", "answer", "video_path", "reasoning", "mentions", "language"):
                    assert getattr(back, field) == getattr(sample, field)
                if sample.kind in ("interval", "appears", "where", "attribute", "first"):
                    assert back.task == sample.task


def published():
    return {
        "id": 7,
        "source": "STR_coin",
        "task": SPATIO_TEMPORAL,
        "question": "What happens after the lid is lifted?",
        "answer": "The soup is stirred.",
        "video_path": "coin/abc.mp4",
        "key_frames": [
            {"idx": 125, "time": 5.0, "path": "coin/abc_125.jpg"},
            {"idx": 230, "time": 9.2, "path": "coin/abc_230.jpg"},
        ],
        "key_items": {"125": {"man": [[0.25, 0.2, 0.5, 0.8]]}, "230": {"spoon": [[0.4, 0.5, 0.55, 0.7]]}},
        "reasoning_process": "The <obj>man</obj><box>[0.25, 0.20, 0.50, 0.80]</box>at<t>5.0</t>s lifts it.",
    }


def test_a_published_record_without_our_fields_is_read():
    sample = stgr.from_stgr(published())
    assert (sample.id, sample.language, sample.intervals, sample.kind) == ("7", "en", (), "")
    assert sample.mentions == (
        Grounding("man", 5.0, boxes=((0.25, 0.2, 0.5, 0.8),)),
        Grounding("spoon", 9.2, boxes=((0.4, 0.5, 0.55, 0.7),)),
    )
    assert stgr.from_stgr(published() | {"question": "锅盖之后发生什么?"}).language == "zh"
    record = published() | {"task": VISUAL, "image_path": "1.jpg", "image_size": [640, 480]}
    del record["key_frames"], record["video_path"]
    record["reasoning_process"] = "The <obj>man</obj><box>[160, 120, 320, 240]</box> lifts it."
    sample = stgr.from_stgr(record)
    assert sample.image_size == (640, 480) and sample.mentions == (
        Grounding("man", None, boxes=((0.25,) * 2 + (0.5,) * 2,)),
    )


@pytest.mark.parametrize(
    "change, words",
    [
        ({"task": "temporal"}, "field 'task' must be one of .* not 'temporal'"),
        ({"answer": None}, "field 'answer' is missing"),
        ({"question": 3}, "field 'question' must be a string, not 3"),
        ({"video_path": None}, "field 'video_path' is missing"),
        ({"id": 1.5}, "field 'id' must be str or int"),
        ({"key_frames": [5.0]}, "field 'key_frames' must be a list of objects"),
        ({"key_frames": [{"idx": "125", "time": 5.0}]}, "'idx' must be an integer"),
        ({"key_frames": [{"idx": 125, "time": -1}]}, "'time' needs times in seconds"),
        ({"key_items": {"125": {"man": [[25, 20, 50, 80]]}}}, "needs boxes .* in 0-1 .*divide pixels"),
        ({"key_items": {"125": {"man": [0.1, 0.1, 0.2, 0.2]}}}, "needs boxes"),
        ({"key_items": {"125": {"man": [[0.5, 0.1, 0.2, 0.2]]}}}, "needs boxes"),
        ({"key_items": {"125": ["man"]}}, "field '125' must be an object"),
        ({"intervals": [[3, 2]]}, "ends before it starts"),
        ({"intervals": [[3]]}, "pairs"),
        ({"language": "fr"}, "must be en or zh"),
        ({"image_size": [0, 3]}, "image_size"),
        ({"duration": float("nan")}, "'duration' needs times"),
    ],
)
def test_a_wrong_field_is_named(change, words, tmp_path):
    path = tmp_path / "stgr.json"
    fields.save_records(path, [published(), published() | change])
    with pytest.raises(UserError, match=f"stgr.json record 1.*{words}"):
        load_stgr(path)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"time": [1]}, "unknown field 'time'"),
        ({"timestamps": None}, "field 'timestamps' is missing"),
        ({"timestamps": ["soon"]}, "'timestamps' needs times in seconds"),
        ({"timestamps": [1.0, 2.0]}, "'bboxes' must have one entry for each of the 2 timestamps, but has 1"),
        ({"bboxes": [[10, 20, 30, 40]]}, "divide pixels by the width and height"),
        ({"objects": ["a", "b"]}, "'objects' must have one entry"),
        ({"objects": [1]}, "list of names"),
    ],
)
def test_a_wrong_field_of_the_article_is_named(change, words, tmp_path):
    record = {"video_path": "a.mp4", "question": "Where?", "answer": "There."}
    record |= {"timestamps": [1], "bboxes": [[0, 0, 0.5, 1]]}
    path = tmp_path / "annotations.json"
    fields.save_records(path, [record])
    (sample,) = load_article(path)
    assert (sample.id, sample.task, sample.source) == ("annotations-0", SPATIO_TEMPORAL, "article")
    assert sample.mentions == (Grounding("object", 1.0, boxes=((0.0, 0.0, 0.5, 1.0),)),)
    fields.save_records(path, [record, record | change])
    with pytest.raises(UserError, match=f"annotations.json record 1.*{words}"):
        load_article(path)


def test_an_unreadable_annotation_file_is_named(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(UserError, match="x.json cannot be read"):
        load_stgr(path)
    for text, words in (
        ("[1, 2", "is not valid JSON"),
        ("{}", "must hold a JSON list"),
        ("[3]", "must hold a JSON list"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=f"x.json {words}"):
            load_stgr(path)


def test_a_data_set_can_be_interrupted_and_made_again(tmp_path, capfd):
    out = tmp_path / "set"
    samples = make_dataset(out, "val", 3)
    assert capfd.readouterr() == ("", "")
    whole = contents(out)
    assert len(samples) == 6 and load_stgr(out / "stgr.json") == samples
    article = load_article(out / "annotations.json")
    assert [(s.question, s.answer, s.mentions) for s in article] == [
        (s.question, s.answer, s.mentions) for s in samples
    ]
    for sample in samples:
        scene = make_scene(int(sample.id.split("-")[1]))
        assert sample in make_samples(scene) and (out / sample.video_path).is_file()
        for frame in stgr.to_stgr(sample)["key_frames"]:
            image = np.asarray(Image.open(out / "kfs" / frame["path"])).astype(float)
            assert np.abs(image - scene.render([frame["time"]])[0]).mean() < 3
    with pytest.raises(UserError, match="holds another data set"):
        make_dataset(out, "val", 4)
    with pytest.raises(UserError, match="count must be at least 1"):
        make_dataset(tmp_path / "none", "val", 0)
    assert contents(out) == whole and not (tmp_path / "none").exists()

    videos = sorted((out / "videos").iterdir())
    videos[1].rename(out / "videos" / f".{videos[1].name}.0.part")  # as a killed process leaves it
    (out / "stgr.json").unlink()
    make_dataset(out, "val", 3)
    assert contents(out) == whole

    early = tmp_path / "early"
    early.mkdir()
    (early / ".dataset.json.0.part").write_text('{"wor')
    make_dataset(early, "val", 3)
    assert contents(early) == whole


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        make_dataset(tmp_path, "train", 1)
    with pytest.raises(UserError, match="cannot be made a folder"):
        make_dataset(tmp_path / "notes.txt", "train", 1)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="dataset.json is not valid JSON"):
        make_dataset(tmp_path, "train", 1)
    assert len(list(tmp_path.iterdir())) == 2


def test_the_command_makes_a_data_set_and_refuses_with_one_sentence(tmp_path):
    def run(*args):
        command = [sys.executable, "-m", "experiments.data", *args]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    done = run("make", "--out", str(tmp_path / "set"), "--split", "test", "--count", "1")
    assert done.returncode == 0, done.stderr
    assert "1 clips, 2 questions" in " ".join(done.stdout.split())
    assert len(load_stgr(tmp_path / "set" / "stgr.json")) == 2
    refused = run("make", "--out", str(tmp_path / "other"), "--level", "9")
    assert refused.returncode == 2 and not (tmp_path / "other").exists()
    assert (
        "--level=9: 9 is not an integer in the range [1, 4]" in refused.stderr
        and "Traceback" not in refused.stderr
    )
    assert run("made").returncode == 2
