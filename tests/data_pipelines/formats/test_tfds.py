"""A data set as TFDS: what is written is read back unchanged, by TFDS alone and without TensorFlow."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.formats import tfds as tfds_builders
from data_pipelines.formats.index import index_folder
from data_pipelines.formats.sample import Candidate, KeyFrame, Sample
from data_pipelines.synthetic.datasets import make_dataset
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.tasks import SPATIO_TEMPORAL, VISUAL
from o3jax.video import probe
from tests.support.commands import run_command

BOX = (0.1, 0.2, 0.30000000000000004, 1.0)
FULL = Sample(
    id="st-1",
    source="STR_coin",
    task=SPATIO_TEMPORAL,
    question='What does "the man" do?\n揭开盖子之后',
    answer="He stirs.",
    video_path="videos/a.mp4",
    duration=12.3,
    reasoning="<obj>man</obj>",
    mentions=(
        Grounding("man", 5.0, boxes=(BOX, BOX), interval=(4.0, 6.0)),
        Grounding("lid", None),
        Grounding("", 0.0, boxes=(BOX,)),
    ),
    intervals=((0.1, 0.30000000000000004), (5.0, 6.0)),
    key_frames=(KeyFrame(125, 5.0, "kfs/a_125.jpg"), KeyFrame(230, 9.2)),
    candidates=(
        Candidate("He waits.", 0.25, "why", (Grounding("man", 1.0, boxes=(BOX,)),), ((1.0, 2.0),)),
        Candidate("He stirs.", 1.0),
    ),
    language="zh",
    kind="interval",
)
PICTURE = Sample(
    "vg-1", "gqa", VISUAL, "Where?", "there", image_path="a.jpg", image_size=(640, 480), duration=None
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the files that the samples above name."""
    for name in ("videos/a.mp4", "kfs/a_125.jpg", "a.jpg"):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "root"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set of the synthetic world."""
    folder = tmp_path_factory.mktemp("world") / "data"
    make_dataset(folder, "train", 3, 1)
    return folder


def test_samples_come_back_unchanged_and_in_order(root, tmp_path):
    splits = {
        "sft": [FULL, PICTURE, *(dataclasses.replace(FULL, id=f"{i}") for i in range(30))],
        "rl": [PICTURE],
    }
    folder = tfds_builders.write(tmp_path / "out", root, splits)
    for split, samples in splits.items():
        assert tfds_builders.read(tmp_path / "out", split) == samples
        source = tfds.data_source("o3_stgr_published", split=split, data_dir=tmp_path / "out")
        assert [tfds_builders.decode(example) for example in source] == samples
        assert tfds_builders.decode(source[len(samples) - 1]) == samples[-1]
    part = tfds.builder_from_directory(folder).as_data_source("sft[:2]")
    assert len(part) == 2 and json.loads(part[1]["image_size"]) == [640, 480]
    assert json.loads(source[0]["mentions"]) == []
    assert {path.suffix for path in folder.iterdir()} == {".json", ".array_record-00000-of-00001"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "o3_stgr_published",
        "videos",
        "kfs",
        "a.jpg",
    }
    for file in folder.glob("*.array_record*"):
        assert "group_size:1," in ArrayRecordReader(str(file)).writer_options_string() + ","


def test_every_field_of_a_sample_is_written():
    assert set(tfds_builders.encode(FULL)) == {field.name for field in dataclasses.fields(Sample)}
    assert all(getattr(FULL, f.name) or getattr(PICTURE, f.name) for f in dataclasses.fields(Sample))


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
numbers = st.floats(allow_nan=False, allow_infinity=False)
boxes = st.tuples(numbers, numbers, numbers, numbers)
stretches = st.tuples(numbers, numbers)
mentions = st.lists(
    st.builds(
        Grounding,
        texts,
        st.none() | numbers,
        boxes=st.lists(boxes, max_size=2).map(tuple),
        interval=st.none() | stretches,
    ),
    max_size=2,
).map(tuple)
intervals = st.lists(stretches, max_size=2).map(tuple)
samples = st.builds(
    Sample,
    *[texts] * 5,
    video_path=st.none() | texts.filter(bool),
    image_size=st.none() | st.tuples(st.integers(1, 9999), st.integers(1, 9999)),
    duration=st.none() | numbers,
    mentions=mentions,
    intervals=intervals,
    candidates=st.lists(st.builds(Candidate, texts, numbers, texts, mentions, intervals), max_size=2).map(
        tuple
    ),
)


FEATURES = tfds_builders.O3StgrPublished(data_dir="unused").info.features


@given(samples)
def test_any_sample_survives_its_features(sample):
    """Through TFDS's own encoding of the features, as bytes and numpy."""
    raw = FEATURES.serialize_example(FEATURES.encode_example(tfds_builders.encode(sample)))
    assert tfds_builders.decode(FEATURES.deserialize_example_np(raw)) == sample


@pytest.mark.parametrize(
    ("file", "name"), [("stgr.json", "o3_synthetic"), ("annotations.json", "o3_stgr_article")]
)
def test_build_writes_what_the_index_says(made, tmp_path, capfd, file, name):
    done = run_command(capfd, "data", "build", str(made / file), f"--out={tmp_path / 'out'}")
    assert done.code == 0, done.err
    assert "train 6; 0 records rejected" in done.out
    assert f'tfds.data_source("{name}", split="train", data_dir="{tmp_path / "out"}")' in done.out
    indexed, _ = index_folder(made / file)
    assert len(indexed) == 6 and tfds_builders.read(tmp_path / "out", "train") == indexed


def test_a_built_folder_can_be_moved_and_trained_from(made, tmp_path):
    samples, _ = index_folder(made)
    tfds_builders.write(tmp_path / "out", made, {"train": samples})
    (tmp_path / "out").rename(tmp_path / "moved")
    assert index_folder(tmp_path / "moved") == (samples, [])
    for sample in samples:
        file = tmp_path / "moved" / sample.video_path
        assert file.samefile(made / sample.video_path), "a copy where a link would do"
        assert probe(file).frames == 150


def test_reading_needs_neither_tensorflow_nor_this_project(made, tmp_path):
    tfds_builders.write(tmp_path / "out", made, {"train": index_folder(made)[0]})
    code = (
        "import sys\n"
        "import tensorflow_datasets as tfds\n"
        "source = tfds.data_source('o3_synthetic', split='train', data_dir=sys.argv[1])\n"
        "print([source[i]['id'].decode() for i in (5, 0)], len(source))\n"
        "ours = ('tensorflow.', 'jax', 'data_pipelines', 'o3jax')\n"
        "assert not any(name.startswith(ours) or name == 'tensorflow' for name in sys.modules)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "out")]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ids = [sample.id for sample in index_folder(made)[0]]
    assert done.stdout.split("\n")[0] == f"{[ids[5], ids[0]]} 6"


def test_no_tensorflow_is_loaded_here():
    assert "tensorflow" not in sys.modules


def test_mistakes_are_named(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="a split without usable samples"):
        tfds_builders.write(out, root, {"train": [PICTURE], "rl": []})
    with pytest.raises(UserError, match="goes up with"):
        tfds_builders.write(out, root, {"train": [dataclasses.replace(PICTURE, image_path="../x.jpg")]})
    with pytest.raises(UserError, match="does not exist"):
        tfds_builders.write(out, root, {"train": [dataclasses.replace(PICTURE, image_path="x.jpg")]})
    out.mkdir(exist_ok=True)
    (out / "a.jpg").write_bytes(b"another")
    with pytest.raises(UserError, match="exists already and is not"):
        tfds_builders.write(out, root, {"train": [PICTURE]})
    (out / "a.jpg").unlink()
    tfds_builders.write(out, root, {"train": [PICTURE]})
    with pytest.raises(UserError, match="holds a built data set already"):
        tfds_builders.write(out, root, {"train": [PICTURE]})
    with pytest.raises(UserError, match="has no split 'rl'; it has train"):
        tfds_builders.read(out, "rl")
    with pytest.raises(UserError, match="holds 0 built data sets"):
        tfds_builders.read(root, "train")
    with pytest.raises(UserError, match="write it with experiments.data build"):
        tfds_builders.O3Synthetic(data_dir=tmp_path / "none").download_and_prepare()


def test_media_are_copied_where_they_cannot_be_linked(root, tmp_path, monkeypatch):
    def refuse(source: Path, target: Path) -> None:
        raise OSError("another file system")

    monkeypatch.setattr(tfds_builders.os, "link", refuse)
    tfds_builders.write(tmp_path / "out", root, {"train": [FULL]})
    copied = tmp_path / "out" / "kfs" / "a_125.jpg"
    assert copied.read_bytes() == b"kfs/a_125.jpg" and not copied.samefile(root / "kfs" / "a_125.jpg")
    assert [path.name for path in copied.parent.iterdir()] == ["a_125.jpg"]


def test_a_built_folder_from_elsewhere_is_not_trusted(made, tmp_path, monkeypatch):
    good = index_folder(made)[0][0]
    bad = [dataclasses.replace(good, id="out", video_path="../a.mp4")]
    bad += [
        dataclasses.replace(good, id="box", mentions=(Grounding("x", 1.0, boxes=((0.5, 0.2, 0.5, 0.8),)),))
    ]
    bad += [dataclasses.replace(good, id="late", intervals=((1.0, 99.0),))]
    own = list(tfds_builders.media(good))
    monkeypatch.setattr(tfds_builders, "media", lambda sample: own)
    tfds_builders.write(tmp_path / "out", made, {"train": [bad[0], good, *bad[1:]]})
    samples, rejects = index_folder(tmp_path / "out")
    assert samples == [good]
    assert [(r.id, r.field) for r in rejects] == [
        ("out", "video_path"),
        ("box", "mentions"),
        ("late", "intervals"),
    ]
    monkeypatch.setattr(tfds_builders, "decode", lambda example: Sample(**json.loads(example["mentions"])))
    with pytest.raises(UserError, match=r"records that are no samples \(TypeError: .*\); build it again"):
        index_folder(tmp_path / "out")


def test_candidates_are_audited_from_a_built_folder(made, tmp_path, capfd):
    claim = "<obj>x</obj><box>[0.1,0.1,0.2,0.2]</box>at<t>1.0</t>s"
    one, two, three = (
        dataclasses.replace(sample, task=SPATIO_TEMPORAL, candidates=candidates)
        for sample, candidates in zip(
            index_folder(made)[0],
            [
                (Candidate("yes", 1.0, claim), Candidate("no", 0.0)),
                (Candidate("no", 3.0), Candidate("yes", 2.0, claim)),
                (),
            ],
            strict=False,
        )
    )
    tfds_builders.write(tmp_path / "out", made, {"train": [one, two, three]})
    done = run_command(capfd, "data", "audit", str(tmp_path / "out"), "--reward=format")
    assert done.code == 0, done.err
    assert "2 records with candidates" in done.out and done.out.count("1     │ 50.0%") == 2
    assert done.out.splitlines()[-1] == f"{two.id}: the preferred 'no' scores 0.5, 'yes' scores 1"
    done = run_command(capfd, "data", "audit", str(made))
    assert done.code == 2 and "no usable record with candidates" in done.err
