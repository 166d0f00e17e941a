"""Of a long video a page embeds what surrounds the evidence, and knows where each piece of it is."""

from __future__ import annotations

import dataclasses
import io
from fractions import Fraction

import av
import pytest

from o3jax.report import embedded
from o3jax.report.answer import Answer, Evidence
from o3jax.searched import Pass, Search
from tests.support.numbered import read_number, write_video

FPS = 5
TEXTS = {
    "excerpts": "{seconds:.0f} {width} {height} {fps}",
    "copy": "{why} {width} {height} {fps}",
    "large": "large",
}


def answer(times, windows=(), intervals=()):
    search = Search(
        passes=(Pass(name="coarse", every_s=5.0, read=1, decoded=1),),
        intervals=tuple(windows),
        uniform=not windows,
        why="",
        frames=3000,
        budget=3000,
    )
    evidence = tuple(Evidence("it", time_s=t, frame=round(t * 25), confidence=0.5) for t in times)
    return Answer(
        question="?", text="", confidence=0.5, evidence=evidence, intervals=intervals, search=search
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (answer([100.0]), [(97.0, 103.0)]),
        (answer([1.0, 599.5]), [(0.0, 4.0), (596.0, 600.0)]),
        (answer([100.0, 107.0, 200.0]), [(97.0, 110.0), (197.0, 203.0)]),
        (answer([100.0], [(90.0, 112.0)]), [(87.0, 115.0)]),
        (answer([], intervals=((50.0, 60.0),)), [(47.0, 63.0)]),
        (answer([]), [(0.0, 3.0)]),
        (answer([100.0], [(200.0, 400.0)]), [(97.0, 103.0)]),  # which would be too much
        (answer([], [(200.0, 400.0)]), [(197.0, 317.0)]),
    ],
)
def test_pieces(given, expected):
    found = embedded.pieces(given, 600.0)
    assert found == expected and sum(b - a for a, b in found) <= 120


def test_the_embedded_video_shows_its_pieces(tmp_path, monkeypatch):
    path = write_video(tmp_path / "long.mp4", range(200 * FPS), Fraction(1, FPS), gop=50).path
    monkeypatch.setattr(embedded, "VIDEO_BYTES", path.stat().st_size - 1)
    made = embedded.embed(answer([50.0, 150.0]), path, (160, 96), 200.0, TEXTS)
    assert [piece[:2] for piece in made.pieces] == [(47.0, 53.0), (147.0, 153.0)]
    with av.open(io.BytesIO(made.data)) as container:
        frames = list(container.decode(video=0))
    shown = {round(float(f.pts * f.time_base), 2): f.to_ndarray(format="rgb24") for f in frames}
    for start, _, at in made.pieces:
        for later in (0.0, 2.4, 5.0):
            assert read_number(shown[round(at + later, 2)]) == round((start + later) * FPS)
    whole = dataclasses.replace(answer([50.0]), search=None)
    assert not embedded.embed(whole, path, (160, 96), 200.0, TEXTS).pieces
