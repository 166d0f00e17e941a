"""The benchmarks of the field by one command: scores that go on, and one sentence for what is wrong."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from data_pipelines.formats.benchmarks import registry
from experiments.evaluation.benchmarks import answering, command
from experiments.evaluation.benchmarks.suite import SUITE
from experiments.library import beam, records
from o3jax import api
from o3jax.errors import UserError
from o3jax.files import read_json
from tests.support.benchmarks import scripted, truth
from tests.support.commands import run_command


@pytest.fixture
def evaluate(made, tmp_path, capfd):
    """Returns a function that runs the command on a made benchmark, into the test's folder."""

    def run(name: str, *flags: str, root: Path | None = None, workdir: str = "run"):
        root = root or (made if name == "all" else made / name)
        given = (f"--benchmark={name}", f"--data_root={root}", f"--workdir={tmp_path / workdir}", *flags)
        return run_command(capfd, "evaluate", *given)

    return run


def result_of(tmp_path: Path, name: str, workdir: str = "run") -> dict:
    return read_json(tmp_path / workdir / name / "result.json")


def test_the_truth_scores_full_on_every_benchmark(evaluate, made, monkeypatch, tmp_path):
    scripted(monkeypatch)
    done = evaluate("all", f"--out={tmp_path / 'all.json'}", "--judge=rule")
    assert done.code == 0, done.err
    found = read_json(tmp_path / "all.json")["benchmarks"]
    assert set(found) == set(registry.FORMATS) == set(SUITE)
    for name, result in found.items():
        metrics = dict(result["metrics"])
        full = [
            metrics[metric] for metric in SUITE[name].headline if metric not in ("mAM", "mLGM", "unparsed")
        ]
        share = {"activitynet": 0.9, "videozerobench": 0.8}.get(
            name, 0.999
        )  # an empty span; no windows or boxes
        assert all(value >= share for value in full), (name, metrics)
        assert result["model"]["name"] == "o3-tiny" and result["parser"] == "o3" and not result["failed"]
        errors = {
            kind: value for kind, value in result["errors"].items() if kind not in ("worst", "no_claim")
        }
        if name not in ("activitynet", "videozerobench"):
            assert set(errors.values()) == {0.0}, (name, errors)
        assert "random" in result["floors"] and "best constant" in result["floors"]
        assert (
            len(result["rows"]) == result["items"]
            and result["rows"][0]["texts"]
            and result["rows"][0]["frames_s"]
        )
        assert (tmp_path / "run" / name / "worst.html").is_file()
        assert f"{name}: {result['items']} items" in done.out.replace("\n", " ").replace("  ", " ")
    star = found["vstar"]
    assert star["metrics"]["mAM"] == pytest.approx(1.0, abs=1e-5) and star["judge"]["name"] == "rule"
    assert set(star["groups"]) == {"domain", "length", "boxes"}
    alone = sum(len(row["bboxes"]) == 1 for row in read_json(made / "vstar" / "V_STaR_test.json", list))
    assert star["groups"]["boxes"]["one box"]["N"] == alone > 0
    assert set(star["groups"]["length"]) == {"Short"}
    v2 = found["videomme_v2"]
    assert v2["metrics"]["groups"] == 5 and v2["groups"]["level"]["1"]["N"] == 8
    assert "not run" in done.out and "in percent" in done.out
    json.dumps(found, allow_nan=False)


def test_wrong_answers_are_counted_as_published(evaluate, monkeypatch, tmp_path):
    """A late interval, the wrong letter, nothing."""

    def say(item, part):
        number = int(item.id.rpartition("_")[2])
        start, end = item.intervals[0]
        return {0: truth(item, part), 1: f"{start + 4} to {end + 4}", 2: "soon"}[number % 3]

    scripted(monkeypatch, say)
    assert evaluate("tvgbench", "--parser=o3").code == 0
    result = result_of(tmp_path, "tvgbench")
    assert result["metrics"]["unparsed"] == 0.3 and result["errors"]["time_off_more_than_3s"] >= 0.3
    assert result["errors"]["no_time"] == 0.3 and result["metrics"]["R1@0.7"] == 0.4
    assert result["metrics"]["avg"] == pytest.approx(
        sum(result["metrics"][one] for one in ("mIoU", "R1@0.3", "R1@0.5", "R1@0.7")) / 4
    )
    assert result["errors"]["worst"][0] in {row["id"] for row in result["rows"] if row["tIoU"] == 0}
    # As Time-R1 counts, an IoU of exactly a threshold is no hit; as TimeLens does, it is.
    item = registry.load("tvgbench", Path(result["data_root"]))[0]
    half = f"{item.intervals[0][0]} to {sum(item.intervals[0]) / 2}"
    for name, hit in (("tvgbench", 0.0), ("timelens_charades", 1.0)):
        scorer = SUITE[name].scorer
        prediction = scorer.guess(item, None, tuple(map(float, half.split(" to "))), (0, 0, 1, 1))
        exact = scorer.figures(item, prediction)["tIoU"] == 0.5
        assert not exact or scorer.metrics([(item, prediction)])["R1@0.5"] == hit


def test_another_parser_needs_no_model(evaluate, monkeypatch, tmp_path, capfd):
    scripted(monkeypatch)
    assert evaluate("tvgbench").code == 0
    before = result_of(tmp_path, "tvgbench")
    monkeypatch.setattr(api, "load", None)
    done = run_command(capfd, "evaluate", f"--rescore={tmp_path / 'run'}", "--parser=official")
    assert done.code == 0, done.err
    after = result_of(tmp_path, "tvgbench")
    # The published expression does not read `From <t>3</t>s to <t>4</t>s`.
    assert before["metrics"]["unparsed"] == 0 and after["metrics"]["unparsed"] == 1
    assert (after["parser"], after["rows"][0]["texts"]) == ("official", before["rows"][0]["texts"])
    again = run_command(capfd, "evaluate", f"--rescore={tmp_path / 'run' / 'tvgbench'}", "--parser=o3")
    assert again.code == 0 and result_of(tmp_path, "tvgbench") == before


def test_what_is_not_asked_anew_stays_as_it_was(evaluate, monkeypatch, tmp_path, capfd):
    """A run that is scored again, for a judge say, keeps its parser and its space of boxes."""
    scripted(monkeypatch)
    flags = ("--harness=official", "--box_space=pixels")
    assert evaluate("vstar", *flags).code == 0
    before = result_of(tmp_path, "vstar")
    assert (before["parser"], before["box_space"]) == ("official", "pixels")
    for lost in (False, True):
        if lost:  # a run whose result was never written
            (tmp_path / "run" / "vstar" / "result.json").unlink()
        done = run_command(capfd, "evaluate", f"--rescore={tmp_path / 'run'}", "--judge=rule")
        after = result_of(tmp_path, "vstar")
        assert done.code == 0 and after["parser"] == "official" and after["judge"]["name"] == "rule"
        assert lost or after["box_space"] == "pixels"


def test_official_predictions_of_timelens_are_whole_seconds(evaluate, monkeypatch, tmp_path):
    scripted(monkeypatch, lambda item, part: "The event happens in 1.4 - 4.6 seconds.")
    for parser, interval in (("official", [1.0, 5.0]), ("lmms", [1.4, 4.6])):
        assert evaluate("timelens_charades", f"--parser={parser}", workdir=parser).code == 0
        rows = result_of(tmp_path, "timelens_charades", parser)["rows"]
        assert rows[0]["parsed"]["interval"] == interval


# ---------------------------------------------------------------- runs that stop and go on


def test_a_run_that_is_killed_goes_on_to_the_same_result(evaluate, monkeypatch, tmp_path):
    """At ten random points: between two videos, and in the middle of a line that is being written."""
    scripted(monkeypatch)
    assert evaluate("vstar", "--judge=rule", workdir="whole").code == 0
    whole = (tmp_path / "whole" / "vstar" / "result.json").read_text()
    rng, append = random.Random(3), records.append_text
    for _ in range(10):
        left, cut = rng.randint(0, 9), rng.randint(0, 400)
        pid = os.fork()
        if pid == 0:
            calls = iter(range(100))

            def dying(path, text, calls=calls, left=left, cut=cut):
                if next(calls) == left:
                    append(path, text[:cut])
                    os.kill(os.getpid(), signal.SIGKILL)
                append(path, text)

            records.append_text = dying
            try:
                evaluate("vstar", "--judge=rule")
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
    asked = scripted(monkeypatch)
    assert evaluate("vstar", "--judge=rule").code == 0
    assert (tmp_path / "run" / "vstar" / "result.json").read_text() == whole
    assert len(asked) < 10  # what was there was not asked again
    again = scripted(monkeypatch)
    assert evaluate("vstar", "--judge=rule").code == 0 and not again


def test_two_processes_give_the_result_of_one(evaluate, monkeypatch, tmp_path):
    scripted(monkeypatch)
    assert evaluate("rextime", workdir="one").code == 0
    for number in ("0/2", "1/2"):  # at once: both make the folder, and each asks its own
        if os.fork() == 0:
            try:
                evaluate("rextime", f"--shard={number}", workdir="both")
            finally:
                os._exit(0)
    for _ in range(2):
        os.wait()
    asked = scripted(monkeypatch)
    assert evaluate("rextime", workdir="both").code == 0 and not asked
    first = scripted(monkeypatch)
    done = evaluate("rextime", "--shard=0/2", workdir="two")
    assert done.code == 0 and "4 of 10 items are left for other processes" in done.out
    second = scripted(monkeypatch)
    assert evaluate("rextime", "--shard=1/2", workdir="two").code == 0
    assert not set(first) & set(second) and len(first) + len(second) == 10
    texts = {(tmp_path / name / "rextime" / "result.json").read_text() for name in ("one", "two", "both")}
    assert len(texts) == 1


def test_workers_of_a_pipeline_give_the_result_of_one_process(evaluate, monkeypatch, tmp_path):
    """What each is sent can be pickled; it asks all about a video, about the frames that are wanted."""
    shown = []

    def spread(work, videos, done, runner, options):
        for name, mine in (("-a", videos[::2]), ("-b", videos[1::2])):
            answer = pickle.loads(pickle.dumps(work)).open(name)
            for video in mine:
                answer(video)
        assert done() == set(videos) and runner == "DirectRunner"

    monkeypatch.setattr(beam, "spread", spread)
    for workdir, flags in (("one", ()), ("many", ("--runner=DirectRunner",))):
        scripted(monkeypatch)
        ask = command.answer_video
        monkeypatch.setattr(command, "answer_video", lambda m, a, d, ask=ask: shown.append(a) or ask(m, a, d))
        beam.load_once.cache_clear()
        assert evaluate("vstar", "--frames=published", *flags, workdir=workdir).code == 0
    beam.load_once.cache_clear()
    one, many = ((tmp_path / name / "vstar" / "result.json").read_text() for name in ("one", "many"))
    assert one == many and len(list((tmp_path / "many" / "vstar").glob("records*.jsonl"))) == 2
    assert {asked.frames for group in shown for asked in group} == {registry.FORMATS["vstar"].frames["o3"]}


def test_questions_about_one_video_are_asked_together(evaluate, monkeypatch, tmp_path):
    asked = scripted(monkeypatch)
    assert evaluate("charades_sta").code == 0
    videos = [one.rpartition("_")[0] for one in asked]
    assert videos == sorted(videos, key=videos.index) and len(set(videos)) == 5


def test_several_videos_are_asked_together(evaluate, monkeypatch, tmp_path):
    """The result is that of one after the other, also of two processes; another number is refused."""
    scripted(monkeypatch)
    assert evaluate("charades_sta", workdir="one").code == 0
    scripted(monkeypatch)
    ask, groups = command.answer_video, []
    monkeypatch.setattr(command, "answer_video", lambda m, a, d: groups.append(a) or ask(m, a, d))
    for shard in ("--shard=0/2", "--shard=1/2"):
        assert evaluate("charades_sta", "--videos_together=3", shard, workdir="three").code == 0
    assert [len({one.item.video for one in group}) for group in groups] == [3, 2]
    one, three = (result_of(tmp_path, "charades_sta", name) for name in ("one", "three"))
    assert one["rows"] == three["rows"] and one["metrics"] == three["metrics"]
    done = evaluate("charades_sta", "--videos_together=2", workdir="three")
    assert done.code == 2 and "another videos_together" in done.err


def test_limit_and_ids(evaluate, monkeypatch, tmp_path):
    asked = scripted(monkeypatch)
    assert evaluate("videomme", "--limit=3", workdir="a").code == 0 and len(asked) == 3
    asked = scripted(monkeypatch)
    assert evaluate("videomme", "--ids=001-2,000-1", workdir="b").code == 0
    assert asked == ["000-1", "001-2"] and result_of(tmp_path, "videomme", "b")["items"] == 2
    done = evaluate("videomme", "--ids=nobody", workdir="c")
    assert done.code == 2 and "no item with the id 'nobody'" in done.err
    asked = scripted(monkeypatch)
    assert evaluate("videomme_v2", "--limit=6", workdir="d").code == 0
    metrics = result_of(tmp_path, "videomme_v2", "d")["metrics"]
    assert metrics["groups"] == 1 and metrics["score"] == 1.0 and metrics["counted"] == 6


def test_text_only_is_a_floor(evaluate, monkeypatch, tmp_path):
    scripted(monkeypatch)
    assert evaluate("videomme", "--text_only", "--limit=2").code == 0
    assert result_of(tmp_path, "videomme")["floors"]["text only"]["accuracy"] == 1.0


# ---------------------------------------------------------------- what is wrong is said in one sentence


def test_a_missing_video_is_listed_and_counted(evaluate, made, monkeypatch, tmp_path):
    for name, counted in (("tvgbench", None), ("longvideo_reason", 8)):
        root = tmp_path / f"spoilt-{name}"
        shutil.copytree(made / name, root)
        video = registry.load(name, root)[0].video
        Path(video).unlink()
        scripted(monkeypatch)
        done = evaluate(name, root=root, workdir=name)
        result = result_of(tmp_path, name, name)
        assert done.code == 0 and len(result["failed"]) == 2 and "is missing" in done.out.replace("\n", " ")
        assert result["errors"]["failed"] == 0.2
        if counted is None:
            assert result["metrics"]["mIoU"] == pytest.approx(0.8, abs=1e-6)  # 0 for what failed
        else:
            assert (
                result["metrics"]["accuracy"] == 1.0 and result["metrics"]["counted"] == counted
            )  # left out
        shutil.copyfile(next((made / "clips").glob("*.mp4")), video)
        asked = scripted(monkeypatch)
        assert evaluate(name, root=root, workdir=name).code == 0 and len(asked) == 2  # tried again
        assert not result_of(tmp_path, name, name)["failed"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--benchmark=nonsense",), "unknown benchmark 'nonsense'"),
        (("--benchmark=vstar",), "--data_root is missing"),
        (("--benchmark=vstar", "--data_root=nowhere"), "is no folder"),
        (("--benchmark=vstar", "--data_root={made}/vstar", "--harness=lmms"), "has no prompts 'lmms'"),
        (("--benchmark=all", "--data_root={made}/clips"), "holds no benchmark"),
        (("--benchmark=vstar", "--data_root={made}/vstar", "--shard=4/4"), "--shard must be such as 0/4"),
        (("--rescore={made}",), "holds no run"),
        (("--benchmark=vstar", "--data_root={made}/vstar", "--judge=openai:x"), "O3JAX_JUDGE_URL"),
    ],
)
def test_a_wrong_flag_is_one_sentence(made, monkeypatch, tmp_path, capfd, flags, words):
    scripted(monkeypatch)
    monkeypatch.delenv("O3JAX_JUDGE_URL", raising=False)
    given = [flag.format(made=made) for flag in flags]
    done = run_command(capfd, "evaluate", *given, f"--workdir={tmp_path}")
    assert done.code == 2 and words in done.err and done.err.count("\n") == 1


def test_a_folder_of_another_run_is_refused_and_kept(evaluate, monkeypatch, tmp_path):
    scripted(monkeypatch)
    assert evaluate("tvgbench").code == 0
    before = (tmp_path / "run" / "tvgbench" / "records.jsonl").read_bytes()
    for flags, words in (
        (("--harness=official",), "another harness"),
        (("--limit=2",), "another limit"),
        (("--max_new_tokens=5",), "another decoding"),
    ):
        done = evaluate("tvgbench", *flags)
        assert done.code == 2 and words in done.err and "choose another --workdir" in done.err
    run = tmp_path / "run" / "tvgbench" / "run.json"
    run.write_text(run.read_text().replace('"name": "o3-tiny"', '"name": "other"'))
    done = evaluate("tvgbench")
    assert done.code == 2 and "another model" in done.err
    assert (tmp_path / "run" / "tvgbench" / "records.jsonl").read_bytes() == before


def test_an_item_that_takes_too_long_fails_alone(monkeypatch):
    """In a group that runs out of time each item is tried alone; what still does is listed."""

    def slow(model, asked, decoding):
        deadline = time.monotonic() + (5 if any(one.item == "slow" for one in asked) else 0)
        while time.monotonic() < deadline:
            pass
        return [{"id": one.item.id} for one in asked]

    monkeypatch.setattr(answering, "_answer", slow)

    class Named(str):
        id, video = property(str.__str__), "v.mp4"

    asked = [answering.Asked(Named(name), ()) for name in ("quick", "slow")]
    records = answering.answer_video(None, asked, answering.Decoding(time_limit_s=0.05))
    assert [record["id"] for record in records] == ["quick", "slow"]
    assert "error" not in records[0] and "longer than 0.05 s" in records[1]["error"]


def test_a_prompt_that_does_not_fit_fails_its_item_alone(monkeypatch):
    class Named(str):
        id, video = property(str.__str__), "v.mp4"

    def refuse(model, asked, decoding):
        if any(one.item == "long" for one in asked):
            raise UserError("does not fit the largest bucket")
        return [{"id": one.item.id} for one in asked]

    monkeypatch.setattr(answering, "_answer", refuse)
    asked = [answering.Asked(Named(name), ()) for name in ("a", "long", "b")]
    records = answering.answer_video(None, asked, answering.Decoding())
    assert [("error" in record) for record in records] == [False, True, False]
