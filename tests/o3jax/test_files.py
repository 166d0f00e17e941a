"""Files: whole or not at all, JSON in one sentence, names of every length, and stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading

import fsspec
import numpy as np
import pytest

from o3jax import files
from o3jax.arrays import write_arrays
from o3jax.errors import UserError
from tests.support.disks import full_disk
from tests.support.paths import ROOT
from tests.support.stores import empty_bucket


@pytest.fixture
def bucket(monkeypatch):
    """The name of an empty bucket."""
    return empty_bucket(monkeypatch)


def broken(path):
    """Fails in the middle of a file, or of a folder."""
    if path.is_dir():
        path = path / "weights"
    path.write_text("half")
    raise ZeroDivisionError


@pytest.mark.parametrize("whole", [files.whole_file, files.whole_folder])
@pytest.mark.parametrize("name", ["a.json", "n" * 255, "视" * 85])
def test_what_fails_leaves_nothing(tmp_path, whole, name):
    target = tmp_path / name
    with pytest.raises(ZeroDivisionError), whole(target) as path:
        assert path.parent == tmp_path and path.name.startswith(".") and path.name.endswith(files.PART)
        broken(path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.json", "n" * 255, "视" * 85])
def test_what_a_killed_process_left_is_taken_over(tmp_path, name):
    code = """if True:
        import os, signal, sys
        from o3jax import files
        target, other = sys.argv[1:]
        with files.whole_file(target) as path, files.whole_folder(other) as folder:
            path.write_text("half")
            (folder / "half").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    command = [sys.executable, "-c", code, str(tmp_path / name), str(tmp_path / "folder")]
    for _ in range(2):
        assert subprocess.run(command, cwd=ROOT).returncode == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 2
    files.write_text(tmp_path / name, "whole")
    with files.whole_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("whole")
    assert {p.name for p in tmp_path.iterdir()} == {name, "folder"}
    assert (tmp_path / name).read_text() == "whole"
    assert [p.name for p in (tmp_path / "folder").iterdir()] == ["file"]


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.whole_file(path) as temporary:
        broken(temporary)
    assert path.read_text() == "old"
    files.write_text(path, "new")
    assert path.read_text() == "new"


def test_text_json_and_lines(tmp_path):
    files.write_text(tmp_path / "a.txt", "视频 \udcff\n")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "视频 ?\n"
    files.write_json(tmp_path / "a.json", {"b": "视", "a": [1.5]}, indent=2, sort_keys=True)
    assert (tmp_path / "a.json").read_bytes() == '{\n  "a": [\n    1.5\n  ],\n  "b": "视"\n}\n'.encode()
    assert files.read_json(tmp_path / "a.json") == {"a": [1.5], "b": "视"}
    files.append_text(tmp_path / "lines", "a\n")
    files.append_text(tmp_path / "lines", "b\n")
    assert (tmp_path / "lines").read_text() == "a\nb\n"


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"{", dict, "is not valid JSON"),
        (b"\xff\xfe\xfd", dict, "is not valid JSON"),
        (b"[" * 200_000, list, "is not valid JSON"),
        (b"[1]", dict, "must hold a JSON object: restore the file"),
        (b"{}", list, "must hold a JSON list: restore the file"),
        (None, dict, "cannot be read (No such file or directory)"),
    ],
)
def test_json_that_cannot_be_used_is_one_sentence(tmp_path, content, kind, says):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        files.read_json(path, kind)
    assert str(path) in str(caught.value) and says in str(caught.value) and "\n" not in str(caught.value)


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "full" / "mine").mkdir(parents=True)
    (tmp_path / "loop").symlink_to("loop")
    for path, says in (
        (tmp_path / "no" / "a.txt", "its folder does not exist"),
        (tmp_path / "full", "no ordinary file"),
        ("", "is empty: write one"),
        (tmp_path / ("n" * 256), "File name too long"),
        (tmp_path / "loop", "Too many levels of symbolic links"),
    ):
        with pytest.raises(UserError, match=says):
            files.write_text(path, "x")
    with (
        pytest.raises(UserError, match="not an empty folder: choose another"),
        files.whole_folder(tmp_path / "full"),
    ):
        pytest.fail("entered")


def test_two_writers_of_one_name_do_not_meet(tmp_path):
    """The last to end wins, whole; nothing is left."""
    path, folder = tmp_path / "a", tmp_path / "model"
    with files.whole_file(path) as one, files.whole_folder(folder, replace=True) as mine:
        one.write_text("one")
        (mine / "one").write_text("one")
        with files.whole_file(path) as two, files.whole_folder(folder, replace=True) as yours:
            assert two != one and yours != mine
            two.write_text("two")
        assert path.read_text() == "two" and one.read_text() == "one" and not list(folder.iterdir())
    assert path.read_text() == "one" and [p.name for p in folder.iterdir()] == ["one"]
    assert {p.name for p in tmp_path.iterdir()} == {"a", "model"}


def test_a_folder_stays_until_the_new_one_is_whole(tmp_path):
    model = tmp_path / "model"
    for name in ("old", "new"):
        with files.whole_folder(model, replace=True) as folder:
            (folder / name).write_text(name)
            assert [p.name for p in model.iterdir()] == ["old"] if name == "new" else not model.exists()
    assert [p.name for p in model.iterdir()] == ["new"] and [p.name for p in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ZeroDivisionError), files.whole_folder(model, replace=True) as folder:
        broken(folder)
    assert [p.name for p in model.iterdir()] == ["new"]
    # Killed between the two renames: the next start puts the old one back.
    os.rename(model, files._unfinished_name(model, files._OLD))
    files._unfinished_name(model, 0).mkdir()
    files.clear_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"] and (model / "new").exists()
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(UserError, match="not an empty folder"),
        files.whole_folder(tmp_path / "file", replace=True),
    ):
        pytest.fail("entered")


def test_devices_pipes_and_links_are_written_to_and_stay(tmp_path, capfd):
    before = os.stat("/dev/null").st_mode
    files.write_text("/dev/null", "x")
    assert os.stat("/dev/null").st_mode == before and stat.S_ISCHR(before)
    with pytest.raises(UserError, match=r"cannot write /dev/full \(No space left on device\)"):
        files.write_text("/dev/full", "x")

    print("before")
    files.write_text("/dev/stdout", "inside\n")
    files.write_text("/dev/stderr", "error\n")
    print("after")
    assert capfd.readouterr() == ("before\ninside\nafter\n", "error\n")
    assert os.path.islink("/dev/stdout")

    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    files.write_text(pipe, "through")
    reader.join()
    assert found == ["through"] and stat.S_ISFIFO(os.stat(pipe).st_mode)

    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder/file")
    for text in ("new", "newer"):
        files.write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink() and (tmp_path / "folder" / "file").read_text() == text


def test_a_pipe_that_nobody_reads_is_not_waited_for_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_READER_S", 0.2)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="No such device or address"):
        files.write_text(tmp_path / "pipe", "x")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: files.write_text(path, "x" * 10**6),
        lambda path: write_arrays(path, x=np.zeros(10**6)),
        lambda path: files.append_text(path, "x" * 10**6),
    ],
)
def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(write):
    with full_disk() as disk:
        (disk / "a").write_text("old")
        with pytest.raises(
            UserError, match=r"cannot write .*/a \(.*\): (make room there, or )?name another place"
        ):
            write(disk / "a")
        assert [p.name for p in disk.iterdir()] == ["a"] and (disk / "a").read_text().startswith("old")


def test_a_copy_for_which_there_is_no_room_is_said_of_its_target(tmp_path):
    (tmp_path / "source").write_bytes(bytes(10**6))
    with full_disk() as disk:
        with pytest.raises(UserError, match="cannot write .*target .No space left"):
            with files.whole_file(disk / "target") as temporary:
                shutil.copy2(tmp_path / "source", temporary)
        with pytest.raises(UserError, match="target cannot be used .No space left"), files.writing(tmp_path):
            shutil.copy2(tmp_path / "source", disk / "target")


def test_an_error_of_another_file_names_that_one(tmp_path):
    with (
        pytest.raises(UserError, match="none.mp4 cannot be used .No such file"),
        files.whole_file(tmp_path / "a"),
    ):
        open(tmp_path / "none.mp4")


def test_a_store_takes_files_and_folders(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files.write_text(f"{bucket}/run/a.txt", "视频\n")
    files.write_json(f"{bucket}/run/a.json", {"a": 1})
    run = files.as_path(bucket) / "run"
    assert (run / "a.txt").read_text() == "视频\n"
    assert files.read_json(run / "a.json") == {"a": 1}
    with files.whole_folder(run / "model") as folder:
        (folder / "part").mkdir()
        (folder / "part" / "x").write_bytes(b"\x00")
        (folder / "y").write_text("y")
    assert (run / "model" / "part" / "x").read_bytes() == b"\x00" and (run / "model" / "y").exists()
    with pytest.raises(UserError, match="not an empty folder"), files.whole_folder(run / "model"):
        pytest.fail("entered")
    with pytest.raises(ZeroDivisionError), files.whole_file(run / "c.txt") as path:
        broken(path)
    with pytest.raises(ZeroDivisionError), files.whole_folder(run / "other") as folder:
        broken(folder)
    assert not (run / "c.txt").exists() and not (run / "other").exists()
    assert not list(tmp_path.iterdir())  # no folder named gs:
    with pytest.raises(UserError, match="gs://bucket/run.*weights must be on a disk: copy it there first"):
        files.local_path(run, "a model's weights")
    assert json.loads((run / "a.json").read_text()) == {"a": 1}


def test_a_store_without_its_library(monkeypatch, tmp_path):
    def missing(scheme):
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsspec, "get_filesystem_class", missing)
    with pytest.raises(UserError, match="gs://b/x cannot be reached .Please install gcsfs"):
        files.write_text("gs://b/x", "text")
    assert not list(tmp_path.iterdir())
