"""Rejected records and the commands: what stops a training, what each line and the check tell."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from data_pipelines.formats.index import read_index
from data_pipelines.rows.clips import FolderClips
from data_pipelines.rows.pipeline import Pipeline
from experiments.data.clips import report_rejects
from experiments.training.loop import Feed, RunLength, train
from experiments.training.workdir import Workdir
from o3jax.errors import UserError
from o3jax.tasks import TEMPORAL
from o3jax.video import probe
from tests.data_pipelines.formats.test_index import ARTICLE, STGR, add_pictures, write
from tests.support.commands import command, run_command
from tests.support.streams import Named


@pytest.fixture
def folder(tmp_path, clip) -> Path:
    """An empty data set with one video of six seconds."""
    shutil.copy(clip, tmp_path / "clip.mp4")
    add_pictures(tmp_path)
    return tmp_path


CONFIG = """
from configs import sft_tiny

def get_config():
    c = sft_tiny.get_config("questions")
    c.model_name_or_path, c.data_path = {model!r}, {data!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 192, 3, 16
    c.per_device_train_batch_size = 1
    return c
"""


@pytest.fixture
def training(folder, video_model, tmp_path):
    """The flags of a training on nine good records and a bad one, and its workdir."""
    write(folder, "annotations.json", [*[ARTICLE] * 9, ARTICLE | {"timestamps": [9, 9]}])
    config = tmp_path / "config.py"
    config.write_text(CONFIG.format(model=str(video_model), data=str(folder)))
    workdir = tmp_path / "run"
    return [f"--config={config}", f"--workdir={workdir}"], workdir


def test_too_many_rejects_stop_a_training_before_it_begins(training, folder, capfd):
    flags, workdir = training
    report = workdir / "rejected.jsonl"
    done = run_command(capfd, "sft", *flags)
    assert done.code == 2 and done.err.count("\n") == 1 and "step" not in done.out
    assert f"indexed 9 samples of {folder}; 1 rejected ({report})" in done.out
    assert "1 of the 10 records" in done.err and "max_rejected_share=0.05" in done.err
    (line,) = report.read_text().splitlines()
    assert json.loads(line)["id"] == "annotations-9" and "the time 9 s" in json.loads(line)["reason"]
    assert not (workdir / "model").exists() and not (workdir / "metrics.jsonl").exists()


def test_a_training_gets_the_good_samples_and_the_note(training, folder, capfd, monkeypatch):
    flags, workdir = training
    given = {}

    def train(state, step, feed, workdir, length, **more):
        given.update(note=feed.note, batch=next(feed.pipeline.open()))
        raise UserError("enough")

    with command("sft", *flags, "--config.max_rejected_share=0.1") as module:  # not more than the limit
        monkeypatch.setattr(module, "train", train)
        with pytest.raises(SystemExit):
            module.shell.run(module.main)
    assert "error: enough" in capfd.readouterr().err
    assert given["note"] == "rejected 1  evidence 9 of 20 annotated"
    assert len(given["batch"].inputs.text.input_ids) == 1


class State(NamedTuple):
    step: jax.Array
    model: None = None  # nothing is learnt


def run(workdir: Workdir, note: str) -> None:
    """Two steps of a training that learns nothing."""
    length = RunLength(max_steps=2, log_every=1, save_every=2)
    data = Pipeline([(0,)] * 9, [Named()], batch_size=1, seed=0)

    def step(state, batch):
        return State(state.step + 1), {"loss": jnp.float32(0.5)}

    train(State(jnp.int32(0)), step, Feed(data, note=note), workdir, length)


def test_every_progress_line_tells_the_rejects(tmp_path, capsys):
    run(Workdir(tmp_path / "a", ConfigDict()), "rejected 3")
    run(Workdir(tmp_path / "b", ConfigDict()), "")
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [re.split("  +", line)[:3] for line in lines] == [
        *(["step 1/2", "rejected 3", "loss 0.5"], ["step 2/2", "rejected 3", "loss 0.5"]),
        *(
            ["step 1/2", "loss 0.5", lines[2].split("  ")[2]],
            ["step 2/2", "loss 0.5", lines[3].split("  ")[2]],
        ),
    ]


def test_a_resumed_training_refuses_other_rejects(folder, tmp_path, capsys):
    workdir = Workdir(tmp_path / "run", ConfigDict())
    report = workdir.path / "rejected.jsonl"
    bad = ARTICLE | {"timestamps": [9, 9]}
    for records in ([ARTICLE, bad, bad], [ARTICLE, bad]):  # before its first checkpoint it may change
        write(folder, "annotations.json", records)
        indexed = read_index(folder)
        note = report_rejects(str(folder), indexed, [], workdir, 1.0)
        assert len(indexed.samples) == 1 and note == f"rejected {len(records) - 1}"
    run(workdir, note)
    assert report_rejects(str(folder), read_index(folder), [], workdir, 0.5) == note
    before = report.read_text()
    write(folder, "annotations.json", [ARTICLE, ARTICLE])
    with pytest.raises(UserError, match="put the data set back as it was"):
        report_rejects(str(folder), read_index(folder), [], workdir, 1.0)
    assert report.read_text() == before
    report.unlink()
    assert report_rejects(str(folder), read_index(folder), [], workdir, 1.0) == "rejected 0"
    assert report.read_text() == ""


@pytest.mark.parametrize("records", [[ARTICLE | {"timestamps": [9, 9]}], []])
def test_something_must_be_left(folder, tmp_path, records):
    write(folder, "annotations.json", records)
    with pytest.raises(UserError, match="no usable sample"):
        workdir = Workdir(tmp_path / "run", ConfigDict())
        report_rejects(str(folder), read_index(folder), [], workdir, 1.0)


def test_clips_hold_the_given_samples(folder):
    write(folder, "stgr.json", [STGR, STGR | {"task": TEMPORAL}, STGR, STGR, STGR | {"answer": ""}])
    clips = FolderClips(read_index(folder), questions=2)
    assert [len(clips[i].samples) for i in range(len(clips))] == [2, 1, 1]
    assert {clip.source.path for clip in clips} == {folder / "clip.mp4"}
    assert {clip.source.known for clip in clips} == {probe(folder / "clip.mp4")}


def test_check_prints_counts_and_reasons(folder, capfd):
    bad = {"source": "[red]", "video_path": "none.mp4"}
    write(folder, "stgr.json", [STGR, STGR, STGR | bad, STGR | {"colour": 1}, 3])
    with command("data", "check", str(folder)) as module:
        capfd.readouterr()
        module.data_check.check(str(folder), None)
    out = capfd.readouterr().out
    assert "2 samples, 3 rejected" in " ".join(out.split()) and "[red]" in out
    assert f"7: field 'video_path': {folder / 'none.mp4'} does not exist" in out
    assert "stgr-4: the record must be an object" in out

    done = run_command(capfd, "data", "check", str(folder / "nowhere"))
    assert done.code == 2 and "neither stgr.json nor annotations.json" in done.err
    assert run_command(capfd, "data", "check").code == 2
