"""`o3jax watch`: alerts in folders and in growing files, the same after any number of kills."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from experiments.library.records import lines
from experiments.library.windows import cut
from tests.support import library
from tests.support.commands import run_command
from tests.support.library import EVENTS, film
from tests.support.paths import ROOT
from tests.support.rtsp import camera


@pytest.fixture
def watch(capfd, monkeypatch, tmp_path):
    """Runs watch with the stand-in for the model."""
    library.use(monkeypatch, tmp_path)

    def run(*arguments, out="out"):
        given = (f"--events={tmp_path / 'events.yaml'}", f"--out={tmp_path / out}")
        return run_command(capfd, "watch", *map(str, arguments), *given)

    return run


def alerts_of(folder: Path) -> list[dict]:
    """Returns the alerts, the last line of each id."""
    found = {}
    for path in sorted(folder.glob("alerts*.jsonl")):
        found |= {alert["id"]: alert for alert in lines(path)}
    return [found[name] for name in sorted(found)]


def same_times(alerts: list[dict], truth: dict[str, list]) -> None:
    """Asserts that there is one alert for each true interval, at its time to a frame."""
    found: dict[str, list] = {path: [] for path in truth}
    for alert in alerts:
        found[alert["file"]].append((alert["start_s"], alert["end_s"]))
    for path, intervals in truth.items():
        assert np.allclose(found[path], intervals, atol=0.11), path


def test_fifty_files_killed_five_times_give_the_alerts_of_one_run(watch, tmp_path):
    truth = library.films(tmp_path / "videos", 50)
    done = watch(tmp_path / "videos", out="whole")
    assert done.code == 0, done.err
    whole = alerts_of(tmp_path / "whole")
    same_times(whole, truth)
    code = "import sys; from pathlib import Path; from tests.support import library\n"
    code += "library.killed_runs(Path(sys.argv[1]), 5)"
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == 0, killed.stderr
    records = tmp_path / "out" / "records.jsonl"
    before = sum("moments" in r and "size" in r for line in lines(records) for r in line["records"])
    assert 0 < before < 50
    assert watch(tmp_path / "videos").code == 0
    assert alerts_of(tmp_path / "out") == whole
    asked = [r["id"] for line in lines(records) for r in line["records"]]
    assert len(asked) == len(set(asked))  # nothing was asked twice


def test_each_event_of_a_growing_file_is_alerted_once_and_soon(watch, tmp_path):
    """The file grows four times as fast as time; windows last 3 s, so an alert may come 6 s late."""
    whole = film(tmp_path / "whole.ts", 24.0, events := [(1.0, 2.0), (5.0, 9.6), (14.8, 15.6), (22.0, 24.0)])
    data, path, written = whole.read_bytes(), tmp_path / "cam" / "live.ts", {}
    path.parent.mkdir()

    def grow():
        begun = time.monotonic()
        with path.open("wb", buffering=0) as file:
            while (now := 4 * (time.monotonic() - begun)) < 24:
                file.write(data[file.tell() : int(len(data) * now / 24)])
                seen = [a["id"] for a in lines(tmp_path / "out" / "alerts.jsonl") if a.get("open")]
                for name in seen:
                    written.setdefault(name, now)
                time.sleep(0.02)
            file.write(data[file.tell() :])

    growing = threading.Thread(target=grow)
    growing.start()
    time.sleep(0.2)
    done = watch(path, "--follow", "--idle_s=1")
    growing.join()
    assert done.code == 0, done.err
    rows = list(lines(tmp_path / "out" / "alerts.jsonl"))
    same_times(rows, {str(path): events})  # at the end one line for each
    assert done.out.count("ALERT cam: light at") == len(events)
    starts = {alert["id"]: alert["start_s"] for alert in rows}
    assert len(written) >= 3 and all(now - starts[name] <= 6.0 for name, now in written.items())


def test_an_alert_says_when_where_and_from_which_camera(watch, tmp_path):
    folder = tmp_path / "gate"
    folder.mkdir()
    video = film(folder / "a.mp4", 6.0, [(2.0, 4.0)], creation_time="2026-05-01T08:00:00.000000Z")
    assert watch(folder, "--clips").code == 0
    [alert] = alerts_of(tmp_path / "out")
    assert (alert["camera"], alert["label"], alert["confidence"]) == ("gate", "light", 0.9)
    assert alert["start_at"].startswith("2026-05-01T08:00:02")
    assert alert["evidence"][0]["box"] == list(library.SQUARE)
    clip = tmp_path / "out" / alert["clip"]
    about = json.loads(clip.with_suffix(".json").read_text())
    assert about["source"]["sha256"] == hashlib.sha256(video.read_bytes()).hexdigest()
    with av.open(str(clip)) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == round((about["clip"]["end_s"] - about["clip"]["start_s"]) * 25)
    shown = frames[round((3.0 - about["clip"]["start_s"]) * 25)]
    left, middle = shown[40, 16], shown[40, 24]  # on the square's left border, and inside it
    assert middle.min() > 200 and left[2] - left[0] > 60  # the colour of the first object is a blue-green
    second = watch(folder, "--starts_at=2030-01-01T00:00:00+02:00", "--camera=north", out="other")
    assert second.code == 0
    [other] = alerts_of(tmp_path / "other")
    assert other["start_at"].startswith("2030-01-01T00:00:02") and other["camera"] == "north"


def test_shards_share_a_folder_and_give_the_alerts_of_one_run(watch, tmp_path):
    truth = library.films(tmp_path / "videos", 7)
    assert watch(tmp_path / "videos", out="whole").code == 0
    for shard in ("1/3", "0/3", "2/3"):
        assert watch(tmp_path / "videos", f"--shard={shard}").code == 0
    assert alerts_of(tmp_path / "out") == alerts_of(tmp_path / "whole")
    same_times(alerts_of(tmp_path / "out"), truth)


def test_a_bad_file_is_a_line_and_the_others_go_on(watch, tmp_path):
    truth = library.films(tmp_path / "videos", 3)
    (tmp_path / "videos" / "bad.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(200))
    done = watch(tmp_path / "videos")
    said = " ".join(done.out.split())  # a long folder wraps the table's title
    assert done.code == 0 and "bad.mp4: not read:" in said and "3 videos, 1 not read" in said
    same_times(alerts_of(tmp_path / "out"), truth)
    alone = watch(tmp_path / "videos" / "bad.mp4", out="alone")
    assert alone.code == 2 and "none of 1 videos could be read" in alone.err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "'events' is missing, so there is nothing to ask"),
        ("events:\n", "line 1: 'events' has no questions"),
        ("events: []\n", "line 1: 'events' has no questions"),
        ("events:\n  - name: a\n", "line 2: question is missing"),
        ("events:\n  - question: a?\n", "line 2: name is missing"),
        ("events:\n  - name: a\n    question: [1]\n", "line 3: question must be a text"),
        ("events:\n  - name: a\n    question:\n", "line 3: question must be a text"),
        ("events:\n  - name: a\n    question: b?\n    colour: red\n", "line 4: 'colour' is unknown"),
        ("events:\n  - name: a\n    question: b?\n    min_s: soon\n", "line 4: min_s must be a number"),
        ("events:\n  - name: a\n    question: b?\n    min_confidence: 7\n", "line 4: min_confidence must be"),
        (EVENTS + "  - name: light\n    question: c?\n", "line 4: name: 'light' is there twice"),
        ("events:\n  - name: a\n   question: b?\n", "line 3: this is no YAML"),
        ("events:\n  - name: 'a\n", "this is no YAML"),
        ("events: &a [*a]\n", "line 1: each entry must be fields"),
        ("cameras: 3\n", "'events' is missing"),
        (EVENTS + "cameras: 3\n", "line 4: 'cameras' is unknown"),
        ("- a\n", "line 1: the file must be fields"),
        ("events:\n  - just text\n", "line 2: each entry must be fields"),
        (b"\xff\xfe\x00", "is no UTF-8 text"),
        (b"\0", "this is no YAML"),
        (None, "cannot be read"),
    ],
)
def test_what_is_wrong_in_the_events_is_said_with_its_line(watch, tmp_path, text, says):
    path = tmp_path / "events.yaml"
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    done = watch(tmp_path)
    assert done.code == 2 and str(path) in done.err and says in done.err and "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "no video is named"),
        (("nothing",), "does not exist"),
        (("{tmp}/empty",), "holds no video"),
        (("{tmp}/videos", "--shard=2/2"), "--shard must be such as 0/4"),
        (("{tmp}/videos", "--export=xml"), "--export=xml is unknown"),
        (("{tmp}/videos", "--overlap_s=2"), "more than half a window"),
        (("{tmp}/videos", "--starts_at=noon"), "--starts_at=noon is no time"),
        (("rtsp://camera/1",), "allow its host with --allow_url=camera"),
        (("http://camera/1", "--allow_url=camera"), "is no rtsp:// address"),
        (("{tmp}/videos", "--out="), "--out is empty"),
        (("{tmp}/videos", "--out={tmp}/events.yaml"), "events.yaml"),
        (("{tmp}/videos", "--out=/proc/none"), "/proc/none"),
    ],
)
def test_wrong_flags_are_one_sentence(watch, tmp_path, capfd, arguments, says):
    library.films(tmp_path / "videos", 1)
    (tmp_path / "empty").mkdir()
    given = [argument.format(tmp=tmp_path) for argument in arguments]
    done = run_command(capfd, "watch", f"--events={tmp_path / 'events.yaml'}", f"--out={tmp_path}/o", *given)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err


def test_another_run_s_folder_and_a_used_one_are_refused(watch, tmp_path):
    library.films(tmp_path / "videos", 1)
    assert watch(tmp_path / "videos").code == 0
    done = watch(tmp_path / "videos", "--join_s=3")
    assert (
        done.code == 2 and "holds a run of another join_s (1.0, now 3.0)" in done.err and "--out" in done.err
    )
    from experiments.cli.locks import lock_folder

    with lock_folder(tmp_path / "out", "--out"):
        done = watch(tmp_path / "videos")
    assert done.code == 2 and "is used by another run" in done.err and "another --out" in done.err


def test_pieces_cover_a_video():
    assert cut(9.0, 3.0, 1.0) == [(0, 3), (2, 5), (4, 7), (6, 9)]
    assert cut(9.7, 3.0, 1.0)[-1] == (8, 9.7) and cut(9.3, 3.0, 1.0)[-1] == (6, 9)
    assert cut(1.0, 3.0, 1.0) == [(0, 1.0)] and cut(1.0, 3.0, 1.0, ended=False) == []
    assert cut(9.7, 3.0, 1.0, ended=False)[-1] == (6, 9)


def test_o3_tiny_watches(capfd, tmp_path, clip):
    """The scene of the shared clip, whose truth is known: alerts for what is there alone."""
    from data_pipelines.synthetic.scenes import make_scene
    from o3jax.metrics.boxes import interval_iou

    there = make_scene(8).objects[0]
    colors = {thing.color for thing in make_scene(8).objects}
    absent = next(c for c in ("red", "green", "blue", "yellow", "purple", "orange") if c not in colors)
    (tmp_path / "events.yaml").write_text(
        f"events:\n- {{name: seen, question: 'When is the {there.name('en')} visible?'}}\n"
        f"- {{name: unseen, question: 'When is the {absent} {there.shape} visible?'}}\n"
    )
    given = (f"--events={tmp_path / 'events.yaml'}", f"--out={tmp_path / 'out'}")
    done = run_command(capfd, "watch", str(clip), *given)
    assert done.code == 0, done.err
    [alert] = alerts_of(tmp_path / "out")
    assert alert["label"] == "seen"
    assert interval_iou((alert["start_s"], alert["end_s"]), there.visible[0]) > 0.8
    assert os.path.getsize(tmp_path / "out" / alert["thumbnail"]) > 500


def test_a_camera_on_the_network_is_watched(watch, tmp_path):
    video = film(tmp_path / "camera.ts", 12.0, [(2.0, 4.0), (7.0, 8.5)])
    with camera(video, 12.0, 4.0) as url:
        done = watch(url, "--allow_url=127.0.0.1", "--idle_s=1.5")
    assert done.code == 0, done.err
    found = [(alert["start_s"], alert["end_s"]) for alert in alerts_of(tmp_path / "out")]
    assert np.allclose(sorted(found), [(2.0, 4.0), (7.0, 8.5)], atol=0.11)
    assert done.out.count("ALERT 127_0_0_1: light") == 2
    assert all(alert["start_at"] > "2026" for alert in alerts_of(tmp_path / "out"))  # the clock's time
