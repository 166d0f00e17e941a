"""`o3jax find`: an index that is made once, and the moments that it ranks first."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from data_pipelines.synthetic.datasets import write_video
from data_pipelines.synthetic.scenes import make_scene, scene_seed
from experiments.library import index
from experiments.library.index import QUESTIONS, matches
from o3jax import api
from o3jax.files import read_json
from o3jax.report.answer import Answer, Evidence
from tests.support import library as stand_in
from tests.support.commands import run_command


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """Three clips of level 1 with their scenes."""
    folder = tmp_path_factory.mktemp("library")
    scenes = {}
    for n in range(3):
        scene = make_scene(scene_seed("test", n, 0), 1)
        write_video(scene, folder / f"{scene.id}.mp4")
        scenes[scene.id] = scene
    return SimpleNamespace(folder=folder, scenes=scenes)


@pytest.fixture
def find(capfd, monkeypatch, library, tmp_path):
    """Runs find with a stand-in for the model, which sees what the scene of a file has."""
    asked = []

    def answers(model, piece, clip, path, questions, most, anyway):
        asked.append((path, *questions))
        things = library.scenes[path.rpartition("/")[2][: -len(".mp4")]].objects
        if tuple(questions) == QUESTIONS:
            return [
                Answer(question=q, text="", confidence=1, raw="; ".join(t.name(language) for t in things))
                for q, language in zip(questions, ("en", "zh"), strict=True)
            ]
        [question] = questions
        seen = [t for t in things if t.name("en") in question or t.name("zh") in question] or things[:1]
        start, end = seen[0].visible[0]
        shown = Evidence(seen[0].name("en"), (start + end) / 2, (start, end), confidence=1, frame=0)
        return [
            Answer(question=question, text="t", confidence=0.9, evidence=(shown,), intervals=((start, end),))
        ]

    stand_in.use(monkeypatch, tmp_path)
    monkeypatch.setattr(index, "answers", answers)
    monkeypatch.setattr(api, "load", lambda *_, **__: whole_clips(tmp_path))

    def run(*arguments):
        given = (f"--library={library.folder}", f"--index_dir={tmp_path / 'index'}")
        return run_command(capfd, "find", *arguments, *given)

    return SimpleNamespace(run=run, asked=asked)


def whole_clips(tmp_path):
    model = stand_in.SeeingModel(tmp_path / "model")
    model.settings.clip_s = 6.0
    return model


def test_the_right_moment_is_first_and_the_index_is_made_once(find, library, tmp_path):
    [scene] = [s for s in library.scenes.values() if s.seed == scene_seed("test", 0, 0)]
    thing = scene.objects[1]
    assert [o.name("en") for s in library.scenes.values() for o in s.objects].count(thing.name("en")) == 1
    done = find.run(f"When is the {thing.name('en')} visible?", f"--json={tmp_path / 'f.json'}")
    assert done.code == 0 and "indexed 3 of 3 new videos" in done.err, done.err
    best = read_json(tmp_path / "f.json")["moments"][0]
    assert best["file"] == str(library.folder / f"{scene.id}.mp4")
    assert (best["start_s"], best["end_s"]) == thing.visible[0]
    before = (tmp_path / "index" / "records.jsonl").read_bytes()
    find.asked.clear()
    other = next(name for name in library.scenes if name != scene.id)
    (library.folder / "more").mkdir()
    shutil.copy(library.folder / f"{other}.mp4", library.folder / "more" / f"{other}.mp4")
    (library.folder / "bad.mp4").write_bytes(b"\0" * 600)
    done = find.run(f"{thing.name('zh')}什么时候可见?", "--confirm=1")
    assert done.code == 0 and "indexed 1 of 2 new videos" in done.err and "bad.mp4: not read" in done.err
    assert done.out.startswith(f"1. {library.folder / scene.id}.mp4 ")
    described = [path for path, *questions in find.asked if len(questions) == 2]
    assert described == [str(library.folder / "more" / f"{other}.mp4")]  # nothing was made anew
    assert (tmp_path / "index" / "records.jsonl").read_bytes().startswith(before)
    assert len(find.asked) == 2  # the new one, and the likeliest


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
