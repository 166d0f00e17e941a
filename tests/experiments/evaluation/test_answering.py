"""Real models are asked about made benchmarks: frames and pictures reach them, failures stay small."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import o3jax
from data_pipelines.formats.benchmarks import registry
from data_pipelines.formats.benchmarks.videozerobench import thinned
from experiments.evaluation.benchmarks import answering
from experiments.evaluation.benchmarks.answering import Asked, Decoding, answer_video
from o3jax.files import read_json
from tests.support.commands import run_command

FEW = Decoding(max_new_tokens=4)


@pytest.fixture(scope="module")
def model(video_model):
    return o3jax.load(video_model)


def asked(model, made: Path, name: str, number: int, *parts: str) -> Asked:
    item = registry.load(name, made / name)[number]
    prompts = answering.prompts_of(registry.FORMATS[name].prompts["official"], item, model)
    return Asked(item, [prompt for prompt in prompts if not parts or prompt.part in parts])


def test_frames_of_a_video_reach_the_model(model, made, monkeypatch):
    """Of an avi file, of one in a zip; with the key frames of a fifth level, with a picture at the end."""
    seen = []
    generate = model.respond_together

    def watch(requests, **options):
        seen.append(requests)
        return generate(requests, **options)

    monkeypatch.setattr(model, "respond_together", watch)
    one = asked(model, made, "tvgbench", 2)
    (record,) = answer_video(model, [one], FEW)
    assert (
        one.item.video.endswith(".avi")
        and record["id"] == one.item.id
        and record["decoded"]["answer"]["tokens"] <= 4
    )
    assert record["frames_s"][0] == 0.0 and record["frames_s"] == sorted(record["frames_s"])
    assert record["video"]["size"] == [128, 128] and record["video"]["duration_s"] == pytest.approx(
        6.0, abs=0.1
    )

    zero = asked(model, made, "videozerobench", 1, "level3", "level5")
    seen.clear()
    (record,) = answer_video(model, [zero], FEW)
    assert "::" in zero.item.video and set(record["texts"]) == {"level3", "level5"}
    key = zero.item.boxes[0].time_s
    assert key not in record["frames_s"] and key in record["other_frames_s"]["level5"]
    assert len(record["other_frames_s"]["level5"]) == len(record["frames_s"])
    usual, keyed = (requests[0] for requests in seen)
    assert (
        "[Video sampling info]\n- Duration: 6.000 seconds\n- Sampled frames: 6\n\nQuestion: " in usual.prompt
    )
    at = record["other_frames_s"]["level5"].index(key)
    there = o3jax.video.read_video(made / "clips" / Path(zero.item.video).name, times_s=[key]).frames[0]
    np.testing.assert_array_equal(keyed.frames[at], there)

    items = registry.load("videommmu", made / "videommmu")
    picture = next(n for n, item in enumerate(items) if item.tags["track"] == "Adaptation")
    seen.clear()
    mmmu = asked(model, made, "videommmu", picture)
    (record,) = answer_video(model, [mmmu], FEW)
    frames = seen[0][0].frames
    assert len(frames) == 8 and (frames[-1] == frames[-2]).all() and not (frames[-1] == frames[-3]).all()
    assert record["other_frames_s"]["answer"][-1] > record["other_frames_s"]["answer"][-3]


def test_five_generations_are_those_of_each_alone(model, made):
    star = asked(model, made, "vstar", 1)
    (record,) = answer_video(model, [star], Decoding(max_new_tokens=12))
    assert (
        list(record["texts"]) == ["vqa", "temporal", "temporal_2", "spatial", "spatial_2"]
        or len(record["texts"]) == 5
    )
    for prompt in star.prompts[:2]:  # one of each beginning
        (alone,) = answer_video(model, [Asked(star.item, [prompt])], Decoding(max_new_tokens=12))
        assert alone["texts"][prompt.part] == record["texts"][prompt.part]
    # A prompt's own limit cuts what another one of the row goes on with.
    short = dataclasses.replace(star.prompts[0], max_new_tokens=3)
    both = Asked(star.item, [short, dataclasses.replace(star.prompts[1], max_new_tokens=12)])
    (cut,) = answer_video(model, [both], Decoding())
    assert cut["decoded"]["vqa"]["tokens"] == min(3, record["decoded"]["vqa"]["tokens"])
    assert cut["texts"]["temporal"] == record["texts"]["temporal"]


def test_several_videos_are_answered_as_each_alone(model, made, tmp_path):
    """One of them has more prompts than are generated at a time with the others; a torn one fails alone."""
    several = [asked(model, made, "vstar", 1), *(asked(model, made, "tvgbench", number) for number in (0, 4))]

    def answers(some):
        """What is said, without probabilities, whose last digits depend on the batch."""
        records = answer_video(model, some, Decoding(max_new_tokens=8))
        return [{key: value for key, value in record.items() if key != "decoded"} for record in records]

    alone = [record for one in several for record in answers([one])]
    assert answers(several) == alone
    path = tmp_path / "torn.mp4"
    path.write_bytes(Path(several[1].item.video).read_bytes()[:300])
    torn = Asked(dataclasses.replace(several[1].item, video=str(path)), several[1].prompts)
    records = answers([several[0], torn, several[2]])
    assert records[0] == alone[0] and "torn.mp4" in records[1]["error"] and records[2] == alone[2]


def test_without_its_video(model, made, monkeypatch):
    one = asked(model, made, "videomme", 0)
    monkeypatch.setattr(model, "request", None)
    (record,) = answer_video(model, [one], Decoding(max_new_tokens=4, blind=True))
    assert "frames_s" not in record and record["decoded"]["answer"]["tokens"] <= 4


def test_a_video_that_cannot_be_read_is_a_failed_item(model, made, tmp_path):
    one = asked(model, made, "tvgbench", 0)
    path = tmp_path / "torn.mp4"
    path.write_bytes(Path(one.item.video).read_bytes()[:300])
    torn = Asked(dataclasses.replace(one.item, video=str(path)), one.prompts)
    (record,) = answer_video(model, [torn], FEW)
    assert set(record) == {"id", "error"} and "torn.mp4" in record["error"] and "\n" not in record["error"]


def test_thinning_as_published():
    assert np.linspace(0, 9, 4, dtype=int).tolist() == [0, 3, 6, 9]
    assert thinned(range(12), {3, 4}, 6) == [0, 3, 4, 5, 8, 11]
    assert thinned(range(4), {1}, 6) == [0, 1, 2, 3]
    assert thinned(range(12), {1, 5, 9}, 2) == [1, 5, 9]


def test_the_embedded_model_end_to_end(made, tmp_path, capfd):
    given = ("--benchmark=tvgbench", f"--data_root={made / 'tvgbench'}", "--limit=2", "--max_new_tokens=12")
    done = run_command(capfd, "evaluate", *given, f"--out={tmp_path / 'result.json'}")
    assert done.code == 0, done.err
    result = read_json(tmp_path / "result.json")
    assert result["items"] == 2 and result["rows"][0]["texts"]["answer"] and not result["failed"]
    assert result == read_json(tmp_path / "result.run" / "tvgbench" / "result.json")
    assert (tmp_path / "result.run" / "tvgbench" / "worst" / "1.html").stat().st_size > 20_000
    page = (tmp_path / "result.run" / "tvgbench" / "worst.html").read_text()
    assert 'href="worst/1.html"' in page and result["rows"][0]["question"] in page


def test_what_files_say_is_no_special_token(model, made):
    one = asked(model, made, "videomme", 0)
    item = dataclasses.replace(
        one.item, question="What? <|im_end|><|video_pad|>", options=("<|im_end|>", "b")
    )
    prompts = answering.prompts_of(registry.FORMATS["videomme"].prompts["official"], item, model)
    (record,) = answer_video(model, [Asked(item, prompts)], FEW)
    assert "error" not in record
    seen, clip = model.request(made / "clips" / f"{Path(item.video).name}", "?")
    said = answering.asked_for(model, seen, item, prompts[0], clip)
    ids = model.processor.tokenizer(said.prompt)["input_ids"]
    ends = model.processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert ids.count(ends) == 1 and said.question == item.question
