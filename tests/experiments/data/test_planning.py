"""What fails for one clip before it is read: rejected with every limit at once, or read as a still."""

from __future__ import annotations

import dataclasses
import json
import re

import av
import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipelines.formats.index import read_index
from data_pipelines.rows.clips import FolderClips
from data_pipelines.rows.prompts import MakePrompt
from data_pipelines.rows.settings import EvidenceShape, RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene
from experiments.data.clips import plan
from experiments.training.workdir import Workdir
from o3jax.api import load
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.hf import config_from_hf
from o3jax.inputs.processor import load_processor
from tests.support.commands import command, run_command
from tests.support.tiny import EVIDENCE

ROW = RowShape(640, 6, 16, clips=2)
SHAPE = EvidenceShape(
    frame_pairs=160, patches=16, questions=3, question_length=64, mentions=4, boxes=2, intervals=2
)
GOOD = {
    "video_path": "clip.mp4",
    "question": "When does the red car appear?",
    "answer": "At 3 s.",
    "timestamps": [1.0, 3.0],
    "bboxes": [[0.1, 0.2, 0.3, 0.4], None],
}


def film(path, frames: int, width: int, height: int) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = np.full((height, width, 3), 90, np.uint8)
            picture[: height // 2, : width // 2] = [200, 30, 60]
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(stream.encode())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_video(make_scene(1), folder / "clip.mp4")
    film(folder / "one.mp4", 1, 128, 128)
    film(folder / "wide.mp4", 10, 2500, 10)
    return folder


@pytest.fixture(scope="module")
def rows(video_model):
    config = dataclasses.replace(config_from_hf(video_model), evidence=EVIDENCE)
    return MakeRow(load_processor(video_model), config, ROW, evidence=SHAPE)


def planned(folder, records, rows, workdir=None, share=1.0, questions=1):
    (folder / "annotations.json").write_text(json.dumps(records))
    c = ConfigDict(
        {"seed": 0, "data_path": str(folder), "mixture": {}, "num_train_epochs": 1.0, "max_steps": 0}
        | {"max_rejected_share": share}
    )
    return plan(c, FolderClips(read_index(folder), questions), rows, 1, workdir)


def rejected(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir.path / "rejected.jsonl").read_text().splitlines()]


WIDE = GOOD | {"video_path": "wide.mp4", "timestamps": [0.1, 0.2]}
LONG = GOOD | {"question": "When? " * 300, "timestamps": [1.0] * 7, "bboxes": [None] * 7}
BROKEN = GOOD | {"answer": ""}


@pytest.mark.parametrize("kind", [MakeRow, MakePrompt])
def test_a_clip_that_cannot_be_planned_is_rejected_by_name(folder, rows, tmp_path, kind, capsys):
    names = [f.name for f in dataclasses.fields(kind)]
    rows = kind(**{name: getattr(rows, name) for name in names})
    workdir = Workdir(tmp_path, ConfigDict())
    found = planned(folder, [GOOD, WIDE, LONG, BROKEN, GOOD], rows, workdir)
    assert [clip.samples[0].id for clip in found.clips] == ["annotations-0", "annotations-4"]
    assert [clip.number for clip in found.clips] == [0, 1] and found.note.startswith("rejected 3")
    lines = {line["id"]: line for line in rejected(workdir)}
    assert lines.keys() == {"annotations-1", "annotations-2", "annotations-3"}
    assert "2500 x 10 pixels" in lines["annotations-1"]["reason"]
    reason = lines["annotations-2"]["reason"]
    assert "raise config.row_length" in reason and "config.evidence_shape.question_length" in reason
    supervised = kind is MakeRow
    assert ("config.evidence_shape.mentions to 7" in reason) == supervised
    out = capsys.readouterr().out
    if supervised:
        assert found.note == "rejected 3  evidence 4 of 15 annotated"
        assert lines["annotations-2"]["evidence"] == 7
    # What the sentence asks for is enough, and a little less is not.
    needed = dict(re.findall(r"--config\.([\w.]+)=(\d+)", out))
    assert needed.keys() >= {"row_length", "evidence_shape.question_length"}
    numbers = {name: int(value) for name, value in needed.items()}
    larger = changed(rows, numbers)
    again = planned(folder, [GOOD, WIDE, LONG, BROKEN, GOOD], larger, Workdir(tmp_path / "b", ConfigDict()))
    assert again.note.startswith("rejected 2")
    for name, value in numbers.items():
        less = changed(rows, numbers | {name: value - (128 if name == "row_length" else 1)})
        assert planned(folder, [GOOD, LONG], less).note.startswith("rejected 1"), name
    assert planned(folder, [GOOD, LONG], larger).note.startswith("rejected 0")


def changed(rows, numbers):
    evidence = {name.partition(".")[2]: n for name, n in numbers.items() if "." in name}
    shape = {name.removeprefix("row_"): n for name, n in numbers.items() if "." not in name}
    return dataclasses.replace(
        rows,
        shape=dataclasses.replace(ROW, **shape),
        evidence=dataclasses.replace(SHAPE, **evidence),
    )


def test_all_limits_are_told_in_the_refusal(folder, rows):
    small = dataclasses.replace(
        rows,
        shape=RowShape(64, 2, 8),
        evidence=EvidenceShape(
            frame_pairs=7, patches=2, questions=1, question_length=3, mentions=1, boxes=1, intervals=1
        ),
    )
    with pytest.raises(UserError) as info:
        planned(folder, [GOOD], small, share=0.05)
    said = str(info.value)
    for field in (
        *("row_length", "row_frame_pairs", "row_patches", "evidence_shape.frame_pairs"),
        *("evidence_shape.patches", "evidence_shape.question_length", "evidence_shape.mentions"),
    ):
        assert f"--config.{field}=" in said, field
    fit = {name: int(value) for name, value in re.findall(r"--config\.([\w.]+)=(\d+)", said)}
    assert planned(folder, [GOOD], changed(small, fit), share=0.0).note.startswith("rejected 0")


def test_questions_that_do_not_fit_together_are_tried_alone(folder, rows, tmp_path):
    workdir = Workdir(tmp_path, ConfigDict())
    for _ in range(2):  # the second time from what was kept
        found = planned(folder, [GOOD, LONG, GOOD], rows, workdir, questions=3)
        assert [[s.id for s in clip.samples] for clip in found.clips] == [
            ["annotations-0"],
            ["annotations-2"],
        ]
        assert [line["id"] for line in rejected(workdir)] == ["annotations-1"]


def test_a_video_of_one_frame_is_a_still(folder, rows, video_model):
    record = GOOD | {"video_path": "one.mp4", "timestamps": [0.0, 0.0]}
    rows = dataclasses.replace(rows, shape=dataclasses.replace(ROW, patches=36))  # few frames are large
    found = planned(folder, [record, GOOD], rows)
    assert found.note == "rejected 0  evidence 4 of 4 annotated"
    (clip,) = [clip for clip in found.clips if clip.samples[0].video_path == "one.mp4"]
    row = rows.map(clip)
    assert not row.failures.error.any()
    # As the model is asked about it, through the processor that is compared with transformers'.
    request, _ = load(video_model).request(folder / "one.mp4", GOOD["question"])
    inputs = rows.processor(text=[request.prompt], videos=[request.frames], video_metadata=[request.metadata])
    ids = inputs["input_ids"][0]
    assert row.inputs.text.input_ids[: len(ids)].tolist() == ids.tolist()
    count = len(inputs["pixel_values_videos"])
    assert row.inputs.patches.length[0] == count
    prompts = MakePrompt(rows.processor, rows.config, rows.shape, evidence=SHAPE)
    assert (prompts.map(clip).inputs.patches.values[0] == row.inputs.patches.values[0]).all()


def test_a_prompt_has_room_for_what_the_model_will_propose(folder, rows):
    asked = dataclasses.replace(rows.config, evidence=dataclasses.replace(EVIDENCE, feedback="prompt"))
    plain = MakePrompt(rows.processor, rows.config, ROW, "plain", 10, SHAPE)
    prompts = MakePrompt(rows.processor, asked, ROW, "plain", 10, SHAPE)
    (clip,) = planned(folder, [GOOD], plain).clips
    rng, most = np.random.default_rng(0), prompts.cost(clip).tokens
    assert most > plain.cost(clip).tokens == plain.write(clip).length
    for _ in range(30):
        count = EVIDENCE.proposals
        times, corners = rng.uniform(0, 6, (count, 3)), np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1)
        found = [
            Grounding("", t[0], tuple(np.sort(t[1:])), (tuple(c.ravel()),))
            for t, c in zip(times.tolist(), corners, strict=True)
        ]
        assert prompts.write(clip, found).length <= most
    tight = dataclasses.replace(prompts, shape=dataclasses.replace(ROW, length=most - 1))
    with pytest.raises(UserError, match="more than the"):
        planned(folder, [GOOD], tight, share=0.0)


def test_evidence_that_no_text_names_is_a_refusal(folder, rows):
    unnamed = GOOD | {"objects": ["car", "car"], "reasoning": "A <obj>van</obj> comes."}
    with pytest.raises(UserError, match="none of the 4 annotated pieces of evidence .* does not name"):
        planned(folder, [unnamed, unnamed], rows)
    assert planned(folder, [unnamed, GOOD], rows).note == "rejected 0  evidence 2 of 4 annotated"
    nothing = GOOD | {"timestamps": [], "bboxes": []}
    assert planned(folder, [nothing], rows).note == "rejected 0  evidence 0 of 0 annotated"


CONFIG = """
from configs import common, sft_tiny

def get_config():
    c = sft_tiny.get_config("evidence")
    c.model_name_or_path, c.data_path = {model!r}, {data!r}
    c.questions_per_row, c.row_length, c.row_frame_pairs, c.row_patches = 1, 256, 4, 36
    c.evidence = common.evidence(
        hidden_size=16, num_heads=2, dense_pixels=32 * 32, window_s=0.5,
        temporal_layers=1, decoder_layers=1, question_layers=1, proposals=1,
    )
    c.evidence_shape = common.evidence_shape(
        frame_pairs=75, patches=4, question_length=40, mentions=2, boxes=1, intervals=2
    )
    c.per_device_train_batch_size = c.gradient_accumulation_steps = 1
    c.max_steps, c.warmup_steps, c.log_every, c.save_every = 2, 0, 1, 2
    c.max_rejected_share = 0.9
    return c
"""


def test_the_readmes_record_trains_its_evidence(folder, video_model, tmp_path, capfd, monkeypatch):
    """The command up to its first step: targets of the losses, a one-frame video too, and the note."""
    path = tmp_path / "sft.py"
    path.write_text(CONFIG.format(model=str(video_model), data=str(folder)))
    records = [GOOD, GOOD | {"video_path": "one.mp4", "timestamps": [0.0, 0.0]}, WIDE, LONG]
    (folder / "annotations.json").write_text(json.dumps(records))
    seen = {}

    def train(state, step, feed, workdir, length, **more):
        batches = [next(rows) for rows in [feed.pipeline.open()] for _ in range(2)]
        seen.update(note=feed.note, batches=batches)
        raise UserError("enough")

    flags = f"--config={path}", f"--workdir={tmp_path / 'run'}"
    with command("sft", *flags) as module:
        monkeypatch.setattr(module, "train", train)
        with pytest.raises(SystemExit):
            module.shell.run(module.main)
    assert "error: enough" in capfd.readouterr().err
    assert seen["note"] == "rejected 2  evidence 4 of 13 annotated"
    for batch in seen["batches"]:
        truth = batch.evidence.mentions
        assert truth.has_time[0].sum() == 2 and truth.has_box[0].sum() == 1
        assert (batch.inputs.questions.mention_index[0] >= 0).sum() == 2
    times = sorted(batch.evidence.mentions.time[0, :1, :2].tolist() for batch in seen["batches"])
    assert times == [[[0.0, 0.0]], [[1.0, 3.0]]]

    unnamed = GOOD | {"objects": ["car", "car"], "reasoning": "A <obj>van</obj> comes."}
    (folder / "annotations.json").write_text(json.dumps([unnamed]))
    done = run_command(capfd, "sft", *flags)
    assert done.code == 2 and "none of the 2 annotated pieces of evidence" in done.err
    assert "step " not in done.out and done.err.count("\n") == 1
