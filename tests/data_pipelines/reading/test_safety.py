"""Hostile files and records: none crashes or hangs a run, each is reported, the good ones come through."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_pipelines.reading.guarded import GuardedReader, Limits, inside, read_image
from o3jax.child import GRACE_S
from o3jax.errors import UserError
from o3jax.video import Clip, probe, read_video
from o3jax.video.files import VideoError
from tests.support import hostile
from tests.support.numbered import draw, read_number, write_video
from tests.support.paths import ROOT

SIZE = (48, 80)
EVERY = np.arange(50) / 25


@pytest.fixture(scope="module")
def guard():
    """A reader whose calls may take long enough for any good file on a busy machine."""
    reader = GuardedReader(Limits(max_decode_s=20))
    yield reader
    reader.close()


# Paths


def test_a_path_inside_is_made_absolute(tmp_path):
    (tmp_path / "videos").mkdir()
    file = tmp_path / "videos" / "a:b..c.mp4"
    file.write_bytes(b"x")
    (tmp_path / "link.mp4").symlink_to("videos/a:b..c.mp4")  # to a place inside
    (tmp_path / "root").symlink_to(tmp_path)
    for root in (tmp_path, str(tmp_path / "root")):
        for relative in ("videos/a:b..c.mp4", "./videos//a:b..c.mp4", "link.mp4"):
            assert inside(root, relative) == file


def test_a_path_that_leads_out_is_refused(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "outside.mp4"
    root.mkdir()
    outside.write_bytes(b"x")
    (root / "link.mp4").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    (root / "self.mp4").symlink_to("self.mp4")
    for relative, words in [
        ("../outside.mp4", "goes up with '..'"),
        ("folder/../outside.mp4", "goes up with '..'"),
        ("..", "goes up with '..'"),
        (str(outside), "is an absolute path"),
        ("link.mp4", "is a link out of"),
        ("folder/outside.mp4", "is a link out of"),
        ("self.mp4", "cannot be read"),
        ("http://host/a.mp4", "looks like a URL"),
        ("file:///etc/passwd", "looks like a URL"),
        (f"concat:{outside}|{outside}", "looks like a URL"),
        ("subfile,,start,0,end,9,,:a.mp4", "looks like a URL"),
        ("nothing.mp4", "does not exist"),
        ("a\0b.mp4", "cannot be read"),
        ("", "is no path"),
        (None, "is no path"),
        (["a.mp4"], "is no path"),
    ]:
        with pytest.raises(UserError, match=words):
            inside(root, relative)


# Limits, each with its own sentence


def test_each_limit_has_its_own_sentence(tmp_path, guard):
    path = write_video(tmp_path / "v.mp4", range(50), Fraction(1, 25)).path
    live = write_video(
        tmp_path / "v.mkv", range(0, 2000, 40), Fraction(1, 1000), container_options={"live": "1"}
    ).path
    for change, words, files in [
        ({"max_duration_s": 1.5}, r"lasts 2 s or more; the limit max_duration_s is 1\.5 s", (path, live)),
        ({"max_pixels": 96 * 160 - 1}, r"160 x 96 pixels are refused; the limit is 15359", (path, live)),
        ({"max_frames": 49}, r"has 50 frames or more; the limit max_frames is 49", (path, live)),
        ({"max_bytes": 999}, r"has \d+ bytes; the limit max_bytes is 999", (path, live)),
    ]:
        reader = GuardedReader(replace(hostile.SHORT, **change))
        for file in files:
            # Told times need no count of the frames: what is decoded on the way is all that there is to see.
            for function, asked in ((probe, {}), (read_video, {}), (read_video, {"times_s": EVERY})):
                with pytest.raises(VideoError, match=words):
                    reader.run(function, file, **asked)
        reader.close()
    exact = Limits(max_duration_s=2.0, max_pixels=96 * 192, max_frames=50, max_bytes=path.stat().st_size)
    reader = GuardedReader(exact)
    assert len(reader.run(read_video, path).frames) == 50
    reader.close()
    assert len(read_video(path).frames) == 50  # this process has no such limits


def test_a_picture_is_turned_upright_and_limited(tmp_path, guard):
    (tmp_path / "turned.jpg").write_bytes(hostile.sideways_picture())
    png = hostile.good_pictures(tmp_path)[1]
    assert read_number(guard.run(read_image, tmp_path / "turned.jpg")) == 9
    assert np.array_equal(guard.run(read_image, png), draw(7))
    with pytest.raises(VideoError, match="limit max_pixels is 15359"):
        read_image(png, Limits(max_pixels=96 * 160 - 1))
    with pytest.raises(VideoError, match="limit max_bytes is 9"):
        read_image(png, Limits(max_bytes=9))
    Image.fromarray(draw(7)).save(tmp_path / "a.tiff")  # only what is needed is let in
    with pytest.raises(VideoError, match="cannot be read as a picture"):
        read_image(tmp_path / "a.tiff")


# The child process


def test_a_call_that_hangs_or_crashes_is_the_only_one_lost(tmp_path):
    path = write_video(tmp_path / "v.mp4", range(10), Fraction(1, 25)).path
    reader = GuardedReader(hostile.SHORT)
    before, deaths = reader.run(hostile.process)[0], 0
    for function, words, dies in [
        (hostile.hang, "v.mp4: reading it took longer than max_decode_s = 1 s", True),
        (hostile.sleep, "took longer than max_decode_s", True),
        (hostile.crash, r"v.mp4: the process that read it crashed \(SIGSEGV\)", True),
        (hostile.leave, r"crashed \(exit code 3\)", True),
        (hostile.eat, "needs more memory than max_memory_bytes = 2 GiB", False),
        (hostile.fail, r"reading it failed \(ZeroDivisionError: division by zero\)", False),
        (hostile.refuse, "^[^:]*v.mp4 is refused$", False),
    ]:
        with pytest.raises(VideoError, match=words):
            reader.run(function, str(path))
        deaths += dies
        assert len(reader.run(read_video, path).frames) == 10
        after = reader.run(hostile.process)[0]
        assert (after != before) == dies
        before = after
    assert reader.replaced == deaths == 4
    os.kill(before, signal.SIGKILL)  # between two calls
    with pytest.raises(VideoError, match="SIGKILL"):
        while reader.run(hostile.process):
            pass
    assert len(reader.run(read_video, path).frames) == 10
    reader.close()


def test_the_child_gives_what_the_function_gives(tmp_path, guard):
    path = write_video(tmp_path / "v.mp4", range(10), Fraction(1, 25)).path
    here, there = read_video(path), guard.run(read_video, path, times_s=np.arange(10) / 25)
    assert np.array_equal(here.frames, there.frames) and there.frames.flags.writeable
    assert isinstance(there, Clip) and np.array_equal(here.times_s, there.times_s)
    assert guard.run(probe, path) == probe(path)
    assert np.array_equal(guard.run(hostile.strided), hostile.strided())
    several = guard.run(hostile.arrays, 5, 1000)
    assert [a.shape for a in several] == [(1000,)] * 5 and [a[0] for a in several] == [0, 1, 2, 3, 4]
    kept = guard.run(hostile.arrays, 2, 100)[1]
    guard.run(hostile.arrays, 9, 100)
    assert (kept == 1).all(), "a later call wrote over the result of an earlier one"
    assert [len(a) for a in guard.run(hostile.arrays, 3, 0)] == [0, 0, 0]
    large = guard.run(hostile.arrays, 2, 40 * 2**20)[1]  # more than is kept between calls
    assert large.shape == (40 * 2**20,) and large.min() == large.max() == 1
    assert guard.run(hostile.arrays, 2, 10)[1].tolist() == [1] * 10


def test_the_child_is_light_and_limits_itself_only(guard):
    number, heavy = guard.run(hostile.process)
    assert number != os.getpid() and heavy == []


def test_a_copy_and_every_thread_are_served(guard):
    copied = pickle.loads(pickle.dumps(guard))
    assert copied.limits == guard.limits
    assert copied.run(hostile.process)[0] != guard.run(hostile.process)[0]
    copied.close()
    answers: list[int] = []

    def ask(size: int) -> None:
        answers.extend(len(guard.run(hostile.arrays, 1, size)[0]) - size for _ in range(20))

    threads = [threading.Thread(target=ask, args=(size,)) for size in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [0] * 60


def test_it_works_inside_a_data_worker(tmp_path):
    """Those are daemonic: multiprocessing would not let them have children."""
    path = write_video(tmp_path / "v.mp4", range(20), Fraction(1, 25)).path
    context = multiprocessing.get_context("spawn")
    answers, reader = context.Queue(), GuardedReader(hostile.SHORT)
    worker = context.Process(target=hostile.read_in_worker, args=(reader, str(path), answers), daemon=True)
    worker.start()
    assert "took longer" in answers.get(timeout=60) and answers.get(timeout=60) == 2
    worker.join(60)
    assert worker.exitcode == 0
    with pytest.raises(queue.Empty):
        answers.get_nowait()


def test_two_thousand_calls_leave_nothing_behind(guard):
    def held() -> tuple[int, int]:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        return len(os.listdir("/proc/self/fd")), resident

    for _ in range(50):
        guard.run(hostile.arrays, 2, 200_000)
    files, memory = held()
    for _ in range(2000):
        guard.run(hostile.arrays, 2, 200_000)  # 800 MB in all
    now = held()
    assert now[0] == files and now[1] < memory + 30 * 2**20


PARENT = (
    "import os; from data_pipelines.reading.guarded import GuardedReader, Limits\n"
    "from tests.support import hostile\n"
    "reader = GuardedReader(Limits(max_decode_s=0.5))\n"
    "print(reader.run(hostile.process)[0], flush=True)\n"
)


def test_a_forked_process_gets_a_child_of_its_own_and_leaves_the_other_alone():
    code = PARENT + (
        "if os.fork() == 0:\n"
        "    print(reader.run(hostile.process)[0], flush=True)\n"
        "    reader.close()\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(reader.run(hostile.process)[0])\n"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, forked, after = map(int, said.stdout.split())
    assert before == after != forked


def test_a_child_does_not_outlive_a_dead_parent():
    """Killed with its reader hanging, a run leaves nothing: the child has a clock of its own."""
    code = PARENT + "reader.run(hostile.hang, 'x')\n"
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        child = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 30
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)
    assert GRACE_S < 5


def _runs(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


# Three hundred files


def test_three_hundred_hostile_files(tmp_path, guard):
    """Each is refused with a sentence or read as far as it goes; good ones between them are read whole."""
    goods = hostile.good_videos(tmp_path)
    files = hostile.hostile_files(tmp_path)
    assert len(files) >= 300 and len({file.kind for file in files}) > 20
    outcomes: dict[str, Counter[str]] = {}
    for number, (path, kind, certain) in enumerate(files):
        picture = path.suffix in (".jpg", ".png")
        began = time.monotonic()
        try:
            if picture:
                result = guard.run(read_image, path, guard.limits)
                outcome = "read"
                assert result.dtype == np.uint8 and result.ndim == 3
            else:
                result = guard.run(read_video, path, 10, size=SIZE)
                outcome = "read" if result.status == "complete" else "partial"
                assert result.frames.shape[1:] == (*SIZE, 3) and len(result.frames) == len(result.times_s)
                assert result.notes or outcome == "read"
        except VideoError as error:
            outcome = "refused"
            assert path.name in str(error) and "\n" not in str(error), (path, str(error))
        assert time.monotonic() - began < guard.limits.max_decode_s + 5, path
        assert outcome != "read" or not certain, (path, "not noticed")
        outcomes.setdefault(kind, Counter())[outcome] += 1
        if number % 10 == 0:
            good = guard.run(read_video, goods[number // 10 % len(goods)])
            assert [read_number(frame) for frame in good.frames] == list(range(hostile.FRAMES))
            assert good.status == "complete"
    for kind in ("empty", "garbage", "text", "playlist", "ffconcat", "sdp", "sound_only", "bomb", "still"):
        assert set(outcomes[kind]) == {"refused"}, (kind, outcomes[kind])


def test_the_worst_files_are_refused_in_their_own_words(tmp_path, guard):
    wanted = {
        "still": "lasts 36000 s or more",
        "late": "lasts 36000 s or more; the limit max_duration_s is 14400 s",
        "bomb": "pixels",
        "hidden_bomb": "pixels",
        "png_bomb": "max_pixels",
        "png_larger_bomb": "max_pixels",
        "sound_only": "no video track (only sound)",
        "playlist": "is a playlist",
        "empty": "is empty",
        "pipe": "device, pipe or socket",
        "loop": "cannot be read",
    }
    for path, kind, _ in hostile.hostile_files(tmp_path):
        if kind in wanted:
            with pytest.raises(VideoError) as error:
                if path.suffix in (".jpg", ".png"):
                    guard.run(read_image, path, guard.limits)
                else:
                    guard.run(read_video, path, 10, size=SIZE)
            assert wanted[kind] in str(error.value), (path, str(error.value))
