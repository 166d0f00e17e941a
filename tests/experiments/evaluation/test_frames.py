"""Frames as published: which, how large, what reaches the model and what is told of them."""

from __future__ import annotations

import numpy as np
import pytest

import o3jax
from data_pipelines.formats.benchmarks import registry
from data_pipelines.formats.benchmarks.item import Frames
from experiments.evaluation.benchmarks.answering import Asked, Decoding, answer_video, prompts_of
from experiments.evaluation.benchmarks.frames import chosen_indices, shown_size
from o3jax.files import read_json
from o3jax.inputs.image import VideoConfig
from tests.support.benchmarks import scripted
from tests.support.commands import run_command


def published(name: str, harness: str = "official") -> Frames:
    return registry.FORMATS[name].frames[harness]


@pytest.mark.parametrize(
    ("rule", "total", "fps", "count", "indices"),
    [
        (Frames("ends", 4), 10, 25.0, 4, [0, 3, 6, 9]),  # the worked example of the reference
        (published("videozerobench"), 10000, 30.0, 384, [0, 26, 52, 78, 104, 130]),  # steps of 26.107
        (published("vstar"), 7500, 25.0, 16, [0, 499, 999, 1499, 1999, 2499]),  # 300 s: steps of 499.933
        (published("vstar", "o3"), 360, 29.97, 13, [0, 29, 58, 87]),  # 12 s: every int(fps)-th frame
        (published("vstar"), 422, 25.0, 16, [0, 25, 50]),  # 16.88 s are not above 16, and have 17 seconds
        (published("videomme_v2"), 6500, 25.0, 64, [100, 200, 300]),  # 65 steps of 100, the first is left out
        (published("videomme"), 45000, 25.0, 512, [0, 88, 176, 264, 352, 440]),  # half an hour, 88.06
        (published("videomme", "o3"), 45000, 25.0, 64, [0, 714, 1429]),  # 714.27
        (published("tvgbench"), 92, 25.0, 6, [0, 18, 36, 55, 73, 91]),  # 7.36 frames, and so 6
        (published("timelens_charades"), 30, 30.0, 4, [0, 10, 19, 29]),  # a second: 4 at least
        (published("extremewhenbench"), 135000, 30.0, 768, [0, 176, 352, 528]),  # 176.01
    ],
)
def test_indices_calculated_by_hand(rule, total, fps, count, indices):
    found = chosen_indices(rule, total, fps).tolist()
    assert len(found) == count and found[: len(indices)] == indices
    assert rule.sampling in ("inner", "seconds") or found[-1] == total - 1


@pytest.mark.parametrize(
    ("rule", "count", "height", "width", "size"),
    [
        (published("videozerobench"), 384, 1080, 1920, (128, 224)),  # round(227.6) // 32 = 7
        (published("videozerobench"), 384, 1080, 1440, (128, 160)),  # 171 // 32 = 5
        (published("videozerobench"), 384, 1920, 1080, (128, 64)),  # 72 // 32 = 2
        (published("vstar"), 16, 1080, 1920, (1088, 1920)),  # as large as it is
        # sqrt(2073600 / most) = 5.2489, 2.2728, 2.8125, 8.1498 and 2.0585, sides / 32 cut off.
        (published("videomme"), 512, 1080, 1920, (192, 352)),  # 2 * 19267584 / 512 = 75264 pixels
        (published("videomme"), 40, 1080, 1920, (448, 832)),  # 401408, of one frame
        (published("worldsense", "o3"), 64, 1080, 1920, (384, 672)),  # 262144
        (published("tvgbench"), 180, 1080, 1920, (128, 224)),  # 2 * 3584 * 784 / 180 = 31220
        (published("timelens_charades"), 60, 1080, 1920, (512, 928)),  # 2 * 14336 * 1024 / 60 = 489335
        (published("timelens_charades"), 60, 96, 160, (224, 352)),  # 65536 at least: times 2.0656, 7 and 11
    ],
)
def test_sizes_calculated_by_hand(rule, count, height, width, size):
    assert shown_size(rule, count, height, width, VideoConfig()) == size


def test_the_other_preset_of_videozerobench():
    """96 frames of height 280, for Qwen2.5-VL's patches of 14: 498 // 28 = 17."""
    rule = Frames("ends", 96, height=280)
    assert shown_size(rule, 96, 1080, 1920, VideoConfig(patch_size=14)) == (280, 476)


def test_these_frames_reach_the_model(video_model, made, monkeypatch):
    """At the seconds of the rule; key frames of a fifth level among them, of the same size."""
    model, seen = o3jax.load(video_model), []
    generate = model.respond_together
    monkeypatch.setattr(model, "respond_together", lambda some, **o: seen.append(some) or generate(some, **o))

    def ask(name: str, number: int, rule: Frames, *parts: str) -> dict:
        seen.clear()
        item = registry.load(name, made / name)[number]
        prompts = prompts_of(registry.FORMATS[name].prompts["official"], item, model)
        asked = Asked(item, [prompt for prompt in prompts if prompt.part in parts], rule)
        (record,) = answer_video(model, [asked], Decoding(max_new_tokens=2))
        return record

    record = ask("vstar", 0, published("vstar"), "vqa")
    assert record["frames_s"] == [0, 1, 2, 3, 4, 5]
    clip = registry.load("vstar", made / "vstar")[0].video
    there = o3jax.video.read_video(clip, times_s=range(6)).frames
    np.testing.assert_array_equal(seen[0][0].frames, there)
    record = ask("videozerobench", 1, Frames("ends", 6, height=64), "level3", "level5")
    assert record["frames_s"] == [0, 1.16, 2.36, 3.56, 4.76, 5.96]  # of 150 frames 0, 29, 59, 89, 119, 149
    (key,) = registry.load("videozerobench", made / "videozerobench")[1].boxes
    assert key.time_s in record["other_frames_s"]["level5"]
    assert [some[0].frames.shape for some in seen] == [(6, 64, 64, 3)] * 2


def test_the_run_and_its_table_tell_the_frames(made, monkeypatch, tmp_path, capfd):
    scripted(monkeypatch)

    def evaluate(name: str, *flags: str):
        given = (f"--benchmark={name}", f"--data_root={made}", f"--workdir={tmp_path}", "--harness=official")
        return run_command(capfd, "evaluate", *given, "--limit=2", *flags)

    done = evaluate("vstar,worldsense", "--frames=published")
    assert done.code == 0, done.err
    told = " ".join(done.out.split())
    assert "frames as published, 1 a second, 16 at most; in percent" in told
    assert "frames 2 a second, 4 to 768 (none are published); in percent" in told
    kept = read_json(tmp_path / "vstar" / "run.json")["frames"]["published"]
    assert (kept["sampling"], kept["most"]) == ("seconds", 16)
    assert read_json(tmp_path / "worldsense" / "result.json")["frames"]["published"] is None
    assert "another frames" in evaluate("vstar,worldsense").err
    for benchmark, wrong in (
        *(("vstar", "some"), ("vstar", "1"), ("vstar", "-4"), ("vstar", "9" * 5000), ("synthetic", "some")),
    ):
        done = evaluate(benchmark, f"--frames={wrong}")
        assert done.code == 2 and "--frames must be a number from 2, or published" in done.err
