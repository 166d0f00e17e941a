"""`python -m experiments.answer`: what it prints and writes, and one clear sentence for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import o3jax
from o3jax.errors import UserError
from o3jax.hf import config_from_hf, load_weights
from o3jax.hf.export import export_weights
from o3jax.hf.folder import ASSETS
from o3jax.inference.respond import Response
from o3jax.video.decoder import VideoFile
from tests.support.commands import run_command
from tests.support.numbered import silence, write_video
from tests.support.paths import ROOT

SAID = (
    "<think>A <obj>red circle</obj><box>[100,200,300,400]</box>at<t>1.2</t>s</think>"
    "<answer>From <t>0.5</t>s to <t>2.0</t>s</answer>"
)


@pytest.fixture
def speaking(monkeypatch):
    """The model says `SAID`, each token with probability 0.7."""

    def say(model, processor, requests, *given, **options):
        tokens = np.array(processor.tokenizer(SAID + "<|im_end|>")["input_ids"])
        return [Response(tokens, np.full(len(tokens), 0.7), processor.decode(tokens))]

    monkeypatch.setattr("o3jax.api.respond", say)


@pytest.fixture
def ask(video_model, clip, tmp_path, capfd):
    """A function that asks with the flags given beside (or instead of) the usual ones.

    All outputs are asked for, into a folder that must stay empty unless the command succeeds.
    """
    folder = tmp_path / "out"
    folder.mkdir()

    def run(*positional, **flags):
        usual = {
            "video_path": clip,
            "question": "When does the red circle appear?",
            "model_path": video_model,
            "json": folder / "a.json",
            "report": folder / "a.html",
            "annotated": folder / "a.mp4",
        }
        given = [f"--{name}={value}" for name, value in (usual | flags).items() if value is not None]
        done = run_command(capfd, "answer", *given, *positional)
        if done.code:
            assert not list(folder.iterdir())
        return done

    run.folder = folder
    return run


def one_sentence(done) -> str:
    """Returns what was said about a mistake, after checking how it was said."""
    assert done.code == 2, done
    assert not done.out and "Traceback" not in done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    return done.err.removeprefix("error: ").strip()


# --- answers ---


def test_the_command_answers_in_a_process_of_its_own(video_model, clip, tmp_path):
    """The random model says nothing sensible, in the right form."""
    command = [sys.executable, "-m", "experiments.answer"]
    flags = {"video_path": clip, "question": "红色圆形什么时候出现?", "model_path": video_model}
    flags |= {"json": tmp_path / "a.json"}
    done = subprocess.run(
        [*command, *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("答案:") and "\n证据:" in done.stdout and "\n置信度:0." in done.stdout
    written = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))
    assert written["video"]["status"] == "complete" and written["language"] == "zh"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_everything_that_was_asked_for_is_written(ask, speaking):
    done = ask()
    assert done.code == 0 and not done.err
    lines = done.out.splitlines()
    assert lines[:4] == [
        "Answer: From 0.5 s to 2.0 s",
        "Evidence:",
        "- time 1.2 s (frame 30), box (x1=13, y1=26, x2=38, y2=51)",
        "Confidence: 0.70 (medium)",
    ]
    assert [line.rpartition("/")[2] for line in lines[4:]] == ["a.json", "a.mp4", "a.html"]
    written = json.loads((ask.folder / "a.json").read_text())
    assert written["evidence"][0]["box_px"] == [13, 26, 38, 51]
    with av.open(str(ask.folder / "a.mp4")) as video:
        assert video.streams.video[0].frames == 150
    assert "<html" in (ask.folder / "a.html").read_text()


def test_what_a_person_should_check_is_said_everywhere(ask, speaking, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "SAID", SAID.replace("[100,200,300,400]", "[100,200,300]"))
    done = ask(annotated=None)
    reason = "1 names, boxes or times cannot be read"
    assert done.code == 0 and not done.err
    assert done.out.splitlines()[-4:-2] == ["Confidence: 0.59 (low) needs review", f"Check: {reason}"]
    written = json.loads((ask.folder / "a.json").read_text())
    assert written["reasons"] == [reason] and written["needs_review"] and written["label"] == "low"
    assert reason in (ask.folder / "a.html").read_text()


def test_the_video_is_opened_once_and_no_frame_is_decoded_twice(clip, capfd, monkeypatch):
    """By the embedded model, which reads boxes from the frames that it points at."""
    opened, decoders = [], []
    restart, av_open = VideoFile._restart, av.open
    monkeypatch.setattr(av, "open", lambda path, **options: opened.append(path) or av_open(path, **options))
    monkeypatch.setattr(VideoFile, "_restart", lambda self: decoders.append(self) or restart(self))
    question = "When does the red circle appear?"
    done = run_command(capfd, "answer", f"--video_path={clip}", f"--question={question}")
    assert done.code == 0 and "box (" in done.out
    assert opened == [str(clip)] and [file.decoded for file in decoders] == [150]


def test_frame_numbers_follow_the_rate(ask, speaking):
    assert "(frame 12)" in ask(fps=10, report=None, annotated=None).out


def test_a_truncated_video_is_answered_as_far_as_it_goes(ask, speaking, tmp_path):
    whole = tmp_path / "whole.mp4"
    write_video(whole, range(60), Fraction(1, 10), container_options={"movflags": "+faststart"})
    content = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(content[: len(content) * 2 // 3])
    done = ask(video_path=cut, report=None, annotated=None)
    assert done.code == 0 and done.out.startswith("Answer: ")
    (first, *_) = [line for line in done.err.splitlines() if line.startswith("note: ")]
    assert first.startswith("note: cut off: ") and first.endswith("s of 6.00 s could be decoded")
    seconds = float(first.split()[3])
    written = json.loads((ask.folder / "a.json").read_text())
    assert 1 < seconds < 6 and written["video"]["duration_s"] == pytest.approx(seconds, abs=0.01)
    assert written["video"]["status"] == "partial" and first[6:] in written["video"]["notes"]


# --- videos that cannot be read ---


def audio_only(path: Path) -> None:
    with av.open(str(path), "w") as out:
        for packet in silence(out.add_stream("aac", rate=48000), 1.0):
            out.mux(packet)


def cut_before_its_index(path: Path) -> None:
    write_video(path, range(20), Fraction(1, 10))
    path.write_bytes(path.read_bytes()[:2000])


VIDEOS = {
    "zero_byte.mp4": (lambda path: path.write_bytes(b""), "empty"),
    "noise.mp4": (lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)), ""),
    "audio.mp4": (audio_only, "video"),
    "no_index.mp4": (cut_before_its_index, ""),
    "list.m3u8": (lambda path: path.write_text("#EXTM3U\n#EXTINF:5,\nfile:///etc/passwd\n"), ""),
    "list.mp4": (lambda path: path.write_text("ffconcat version 1.0\nfile '/etc/passwd'\n"), ""),
    "folder.mp4": (lambda path: path.mkdir(), "file"),
}


@pytest.mark.parametrize("name", VIDEOS)
def test_a_video_that_cannot_be_read(ask, tmp_path, name):
    make, said = VIDEOS[name]
    make(tmp_path / name)
    sentence = one_sentence(ask(video_path=tmp_path / name))
    assert name in sentence and said in sentence and "passwd" not in sentence


@pytest.mark.parametrize("path", ["/no/such.mp4", "https://example.com/a.mp4", "concat:a.mp4|b.mp4", ""])
def test_a_video_that_is_not_there(ask, path):
    sentence = one_sentence(ask(video_path=path))
    assert path in sentence


# --- models that cannot be loaded ---


@pytest.fixture
def model_copy(video_model, tmp_path):
    shutil.copytree(video_model, tmp_path / "model")
    return tmp_path / "model"


def another_model(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def wrong_dtype(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.language_model.norm.weight"] = tensors["model.language_model.norm.weight"].astype(np.int8)
    save_file(tensors, folder / "model.safetensors")


def missing_shard(folder: Path) -> None:
    model = load_weights(folder, config_from_hf(folder))
    export_weights(model, folder / "sharded", max_shard_bytes=60_000)
    (folder / "model.safetensors").unlink()
    shards = sorted((folder / "sharded").glob("model*"))
    assert len(shards) > 3
    for path in shards:
        path.rename(folder / path.name)
    (folder / shards[1].name).unlink()


def unknown_setting(folder: Path) -> None:
    (folder / "o3_config.json").write_text('{"colour": 1}')


MODELS = {
    another_model: "'llama'",
    no_config: "config.json",
    no_tokenizer: "tokenizer.json",
    no_weights: "safetensors",
    truncated_weights: "damaged",
    wrong_dtype: "I8",
    missing_shard: "model-00002-of-",
    unknown_setting: "'colour'",
}


@pytest.mark.parametrize("damage", MODELS, ids=lambda damage: damage.__name__)
def test_a_model_that_cannot_be_loaded(ask, model_copy, damage):
    damage(model_copy)
    sentence = one_sentence(ask(model_path=model_copy))
    assert MODELS[damage] in sentence and str(model_copy) in sentence


def test_a_calibration_is_refused_before_the_video_is_read(ask, model_copy):
    shutil.copy(ASSETS / "o3-tiny" / "o3_confidence.json", model_copy)
    said = one_sentence(ask(model_path=model_copy, video_path="no/such.mp4"))
    assert "is the calibration of another model" in said and "o3jax evaluate --calibrate" in said
    with pytest.raises(UserError, match="of another model"):
        o3jax.load(model_copy).answer("no/such.mp4", "When?")


def test_a_model_that_is_not_there(ask):
    assert "'no/such/model' is not a folder" in one_sentence(ask(model_path="no/such/model"))


# --- flags ---


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"fps": 0}, "fps must be a positive number"),
        ({"fps": "nan"}, "fps must be a positive number"),
        ({"fps": "fast"}, "fps=fast"),
        ({"question": ""}, "question"),
        ({"question": "  "}, "the question is empty"),
        ({"question": None}, "--question"),
        ({"video_path": None}, "--video_path"),
        ({"json": "no/such/folder/a.json"}, "--json=no/such/folder/a.json cannot be written"),
        ({"qestion": "x"}, "qestion"),
    ],
    ids=str,
)
def test_a_wrong_flag(ask, flags, said):
    assert said in one_sentence(ask(**flags))


def test_a_question_without_quotes(ask):
    assert "'does'" in one_sentence(ask("does", "it", "appear?"))


def test_the_video_is_never_overwritten(ask, clip):
    before = clip.read_bytes()
    assert "is the input too" in one_sentence(ask(annotated=clip))
    assert clip.read_bytes() == before


def test_the_default_model_is_o3_tiny(ask, monkeypatch):
    asked = []
    load = o3jax.api.load
    monkeypatch.setattr("o3jax.api.load", lambda path, **_: asked.append(path) or load("no/such/model"))
    one_sentence(ask(model_path=None))
    assert asked == ["o3-tiny"]
