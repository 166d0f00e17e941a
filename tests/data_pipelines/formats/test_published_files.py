"""The published files, made with synthetic media: every source, judged, packed into batches, drawn."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.formats.index import data_root, index_folder, read_index
from data_pipelines.rows.clips import FolderClips
from data_pipelines.rows.packing import PlannedRows, plan_rows
from data_pipelines.rows.pipeline import Pipeline
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.published import GROUPS, make_article, make_published
from o3jax.errors import UserError
from o3jax.hf import config_from_hf
from o3jax.inputs.processor import load_processor
from o3jax.models.batch import take
from o3jax.tasks import FREE_FORM, MCQ, SPATIO_TEMPORAL, TEMPORAL, TEMPORAL_MCQ, VISUAL
from o3jax.train.token_loss import IGNORE
from tests.support.commands import run_command
from tests.support.tiny import EVIDENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every task and source in the published tree."""
    out = tmp_path_factory.mktemp("published") / "set"
    made = make_published(out, "test", len(GROUPS))
    for name, stage in (("SFT", "sft"), ("RL", "rl")):
        index = read_index(out / "json_data" / f"STGR-{name}.json")
        told = [dataclasses.replace(one, duration=None) for one in index.samples]  # by the files alone
        assert (told, index.rejects, index.root) == (made[stage], [], out)
        assert all((one.duration is None) == (one.task == VISUAL) for one in index.samples)
        assert {s.video_path for s in index.samples} - {None} == set(index.media)
    return out


def test_the_made_files_hold_every_published_source(folder):
    """As counted in the published files."""
    tasks = {}
    for name in ("SFT", "RL"):
        records = json.loads((folder / "json_data" / f"STGR-{name}.json").read_text())
        tasks[name] = {r["source"]: r["task"] for r in records}
        assert all(("reasoning_process" in r) == (name == "SFT") for r in records)
        assert all(bool(r.get("key_frames")) == (r["task"] == SPATIO_TEMPORAL) for r in records)
    assert len(tasks["SFT"]) == 6 + 7 + 1 + 2 and len(tasks["RL"]) == 7 + 1 + 2 + 1 + 2
    assert set(tasks["SFT"].values()) == {SPATIO_TEMPORAL, TEMPORAL, VISUAL, MCQ, FREE_FORM}
    assert set(tasks["RL"].values()) == set(tasks["SFT"].values()) | {TEMPORAL_MCQ}
    assert index_folder(folder) == index_folder(folder / "json_data" / "STGR-SFT.json")


def label_text(record: dict, reasoning: str = "reasoning_process") -> str:
    """What a cold-start record teaches with boxes per mille, straight from the record."""
    width, height = record.get("image_size", (1, 1))

    def per_mille(box: re.Match[str]) -> str:
        sides = zip(json.loads(box[1]), (width, height) * 2, strict=True)
        return "<box>[" + ",".join(str(round(1000 * v / side)) for v, side in sides) + "]</box>"

    thought, answer = (re.sub(r"<box>(.*?)</box>", per_mille, record[f]) for f in (reasoning, "answer"))
    return f"<think>{thought}</think>\n<answer>{answer}</answer>"


def test_an_epoch_of_batches_teaches_what_the_records_say(folder, video_model):
    processor = load_processor(video_model)
    index = read_index(folder)
    clips = FolderClips(index, questions=1)
    rows = MakeRow(processor, config_from_hf(video_model), RowShape(1200, 16, 256))
    pipeline = Pipeline(clips, [rows], batch_size=4, seed=0)
    stream, told = pipeline.open(), {}
    for _ in range(4):
        batch = next(stream)
        assert not batch.failures.error.any()
        for number, labels in zip(batch.failures.number[:, 0], batch.labels, strict=True):
            text = processor.tokenizer.decode(labels[labels != IGNORE])
            told[clips[number].samples[0].id] = text.removesuffix(processor.tokenizer.eos_token)
    records = json.loads((folder / "json_data" / "STGR-SFT.json").read_text())
    assert told == {record["id"]: label_text(record) for record in records} and len(told) == 16


def test_an_epoch_of_batches_teaches_what_the_article_s_records_say(tmp_path, video_model):
    """Text, times, boxes and intervals of every question, two about a video."""
    make_article(tmp_path / "set", "val", 3)
    records = json.loads((tmp_path / "set" / "annotations.json").read_text())
    records[1]["timestamps"] = [f"00:00:0{records[1]['timestamps'][0]}"]
    records[3]["bboxes"] = [[128 * x for x in box] for box in records[3]["bboxes"]]
    records[3]["image_size"] = [128, 128]
    (tmp_path / "set" / "annotations.json").write_text(json.dumps(records))
    processor, config = load_processor(video_model), config_from_hf(video_model)
    shape = EvidenceShape(
        frame_pairs=90, patches=16, questions=2, question_length=64, mentions=4, boxes=2, intervals=2
    )
    config = dataclasses.replace(config, evidence=EVIDENCE)
    rows = MakeRow(processor, config, RowShape(640, 3, 16), evidence=shape)
    clips = FolderClips(read_index(tmp_path / "set"), questions=2)
    costs = [rows.cost(clip) for clip in clips.clips]
    planned = plan_rows(costs, ["article"] * len(costs), rows.capacity(), seed=0, mixture={}, epochs=1.0)
    stream = Pipeline(PlannedRows(clips.clips, planned), [rows], batch_size=1, seed=0).open()
    told = {}
    for _ in planned:
        row = take(next(stream), 0)
        assert not row.failures.error.any()
        for q, sample in enumerate(clips[row.failures.number[0]].samples):
            labels = row.labels[(row.inputs.text.continuation_ids == q + 1) & (row.labels != IGNORE)]
            text = processor.tokenizer.decode(labels).removesuffix(processor.tokenizer.eos_token)
            truth = row.evidence
            found = truth.mentions.time[q], truth.mentions.boxes[q], truth.intervals[q]
            told[int(sample.id.split("-")[-1])] = (text, *found)
    rows.reader.close()
    assert sorted(told) == list(range(len(records))) == list(range(6))
    for number, (text, times, boxes, intervals) in told.items():
        record = records[number]
        (stamp,), (box,) = record["timestamps"], np.array(record["bboxes"]) / record.get("image_size", [1])[0]
        assert text == label_text(record | {"image_size": (1, 1)}, "reasoning")
        assert times == pytest.approx([float(str(stamp).removeprefix("00:00:0")), 0, 0, 0])
        np.testing.assert_allclose(boxes[0, 0], box, atol=1e-6)
        np.testing.assert_allclose(intervals[: len(record["intervals"])], record["intervals"], rtol=1e-6)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the published set; a function changes the first SFT record of a task and indexes it."""
    out = tmp_path / "set"
    shutil.copytree(folder, out)
    path = out / "json_data" / "STGR-SFT.json"

    def rejected(task: str, change: dict):
        records = json.loads(path.read_text())
        record = next(r for r in records if r["task"] == task)
        path.write_text(json.dumps([record | change, *(r for r in records if r is not record)]))
        samples, (reject,) = index_folder(out)
        assert len(samples) == 15
        return reject

    return out, rejected


@pytest.mark.parametrize(
    ("task", "file", "field"),
    [
        (SPATIO_TEMPORAL, "videos/stgr/plm/videos/*.mp4", "video_path"),
        (SPATIO_TEMPORAL, "videos/stgr/plm/kfs/*.jpg", "key_frames"),
        (VISUAL, "videos/treevgr/images/*.jpg", "image_path"),
    ],
)
def test_media_that_are_missing_or_broken(copy, task, file, field):
    out, rejected = copy
    (path,) = out.glob(file)
    data = path.read_bytes()
    path.unlink()
    reject = rejected(task, {})
    assert (reject.field, reject.missing) == (field, True) and "does not exist" in reject.reason
    path.write_bytes(data[: len(data) // 4])
    reject = rejected(task, {})
    assert (reject.field, reject.missing) == (field, False)


@pytest.mark.parametrize(
    ("task", "change", "field", "words"),
    [
        (VISUAL, {"image_size": [192, 256]}, "image_size", "the image is 256 pixels wide and 192 high"),
        (VISUAL, {"answer": "at <t>3</t>s"}, "answer", "an image has no time"),
        (VISUAL, {"image_path": "../x.jpg"}, "image_path", "goes up with '..'"),
        (TEMPORAL, {"answer": "[5.0, 14.0]"}, "answer", "the time 14 s"),
        (TEMPORAL, {"answer": "[3, 3]"}, "answer", "without length"),
        (TEMPORAL, {"source": "nobody's"}, "source", "nothing published"),
        (SPATIO_TEMPORAL, {"video_path": "/etc/passwd"}, "video_path", "does not exist"),
    ],
)
def test_a_published_record_is_judged_against_its_media(copy, task, change, field, words):
    reject = copy[1](task, change)
    assert reject.field == field and words in reject.reason


def test_which_file_is_read_how(tmp_path):
    assert data_root("/a/b") == Path("/a/b")
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(UserError, match="name does not tell what its records are"):
        read_index(tmp_path / "other.json")
    (tmp_path / "annotations_val.json").write_text("[]")
    assert read_index(tmp_path / "annotations_val.json").root == tmp_path


def test_the_article_made_with_candidates(tmp_path):
    made = make_article(tmp_path / "set", "val", 3)
    plain, none = index_folder(tmp_path / "set")
    index = read_index(tmp_path / "set" / "annotations_rl.json")
    assert not none and not index.rejects and len(index.samples) == len(made) == 6
    for sample, same, truth in zip(index.samples, plain, made, strict=True):
        assert sample.mentions == same.mentions == truth.mentions and sample.intervals == truth.intervals
        by_preference = sorted(sample.candidates, key=lambda c: -c.preference)
        assert [c.preference for c in by_preference] == [2, 1, 0]
        off = [abs(c.mentions[0].time_s - truth.mentions[0].time_s) for c in by_preference]
        assert off == pytest.approx([0, 1, 3]) and by_preference[0].answer == truth.answer


def test_check_draws_and_counts(copy, tmp_path, capfd):
    out, _ = copy
    next(out.glob("videos/stgr/plm/videos/*.mp4")).unlink()
    done = run_command(capfd, "data", "check", str(out), "--out", str(tmp_path / "png"))
    assert done.code == 0, done.err
    assert "15 samples, 1 rejected" in " ".join(done.out.split())
    assert len(re.findall(r"\b6\.0\b", done.out)) == 3 * 14  # of each source but TreeVGR and the missing one
    assert "STR_plm_rdcap-l1-2: field 'video_path'" in done.out
    for name in ("boxes.png", "times.png"):
        with Image.open(tmp_path / "png" / name) as picture:
            assert picture.format == "PNG" and len(np.unique(picture)) > 5


def test_a_published_set_needs_room_for_every_source(tmp_path, capfd):
    flags = ["--out", str(tmp_path / "x"), "--format", "published", "--count", "3"]
    done = run_command(capfd, "data", "make", *flags)
    assert done.code == 2 and f"count must be at least {len(GROUPS)}" in done.err
    assert not (tmp_path / "x").exists()
