"""`o3jax find`: an index that is made once, and the moments that it ranks first."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from experiments.library.index import matches
from o3jax.files import read_json
from o3jax.metrics.boxes import interval_iou
from tests.support.commands import run_command


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Three clips of level 1 with their scenes, and a place for the index."""
    from data_pipelines.synthetic.datasets import write_video
    from data_pipelines.synthetic.scenes import make_scene, scene_seed

    folder = tmp_path_factory.mktemp("library")
    scenes = [make_scene(scene_seed("test", n, 0), 1) for n in range(3)]
    for scene in scenes:
        write_video(scene, folder / f"{scene.id}.mp4")
    return SimpleNamespace(folder=folder, scenes=scenes)


def test_the_right_moment_is_first_and_the_index_is_made_once(capfd, library, tmp_path):
    thing = library.scenes[0].objects[1]
    named = [s for s in library.scenes for o in s.objects if o.name("en") == thing.name("en")]
    assert named == [library.scenes[0]]  # so that one moment is right
    flags = (
        f"--library={library.folder}",
        f"--index_dir={tmp_path / 'index'}",
        f"--json={tmp_path / 'f.json'}",
    )
    done = run_command(capfd, "find", f"When is the {thing.name('en')} visible?", *flags)
    assert done.code == 0 and "indexed 3 of 3 new videos" in done.err, done.err
    best = read_json(tmp_path / "f.json")["moments"][0]
    assert best["file"].endswith(f"{library.scenes[0].id}.mp4")
    assert interval_iou((best["start_s"], best["end_s"]), thing.visible[0]) > 0.7
    before = (tmp_path / "index" / "records.jsonl").read_bytes()
    shutil.copy(library.folder / f"{library.scenes[1].id}.mp4", library.folder / "new.mp4")
    (library.folder / "bad.mp4").write_bytes(b"\0" * 600)
    done = run_command(capfd, "find", f"{thing.name('zh')}什么时候可见?", *flags)
    assert done.code == 0 and "indexed 1 of 2 new videos" in done.err and "bad.mp4: not read" in done.err
    assert done.out.startswith(f"1. {library.folder / library.scenes[0].id}.mp4 ")
    after = (tmp_path / "index" / "records.jsonl").read_bytes()
    assert after.startswith(before) and len(after) > len(before)  # nothing was made anew


def test_words_that_are_rare_and_together_count_most():
    texts = [
        "red star; blue circle",
        "red circle; blue star",
        "green square",
        "红色圆形",
        "红色星形,蓝色圆形",
    ]
    assert max(range(5), key=matches("When is the red circle visible?", texts).__getitem__) == 1
    assert max(range(5), key=matches("红色圆形什么时候出现?", texts).__getitem__) == 3
    assert matches("what?", texts) == [0.0] * 5 and matches("red", []) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("q",), "--library is missing"),
        (("--library={library}",), "the question is missing"),
        (("  ", "--library={library}"), "the question is missing"),
        (("q", "--library={library}", "--index"), "--index asks nothing"),
        (("q", "--library={tmp}"), "holds no video"),
        (
            ("q", "--library={library}", "--index_dir=/proc/none"),
            "--index_dir=FOLDER keeps the index elsewhere",
        ),
    ],
)
def test_wrong_flags_are_one_sentence(capfd, library, tmp_path, arguments, says):
    given = [one.format(library=library.folder, tmp=tmp_path) for one in arguments]
    done = run_command(capfd, "find", *given)
    assert done.code == 2 and says in done.err and done.err.count("\n") == 1, done.err
