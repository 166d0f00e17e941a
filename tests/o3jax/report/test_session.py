"""The page of a run: what it shows, and reviews that are made on it with the mouse."""

from __future__ import annotations

import json
import re

import pytest

from o3jax.grounding import Grounding
from o3jax.printing import fine_clock
from o3jax.report.clip import write_thumbnail
from o3jax.report.moments import Moment
from o3jax.report.session import write_session
from tests.support import browser

EVIL = "<script>alert(1)</script>\"'</div>"


@pytest.fixture
def page(numbered, tmp_path):
    """The page of one video of 4 s with two moments."""
    seen = Moment("cat", 1.0, 2.0, 0.9, (Grounding("cat", 1.5, boxes=((0.25, 0.25, 0.5, 0.75),)),), "here")
    other = Moment(EVIL, 3.0, 3.5, 0.3, (), EVIL, True)
    write_thumbnail(numbered.path, seen, tmp_path / "thumbs" / "1.jpg")
    moments = [
        {"id": "a#cat@1.00", "camera": "gate", "thumbnail": "thumbs/1.jpg", **seen.to_dict()},
        {"id": EVIL, "camera": "gate", "notes": [EVIL], **other.to_dict()},
    ]
    record = {"file": f"/x/{EVIL}.mp4", "duration_s": 4.0, "moments": moments, "chapters": [seen.to_dict()]}
    return write_session(tmp_path, "o3jax watch", [record])


def test_it_is_one_file_that_runs_nothing_of_what_it_shows(page):
    text = page.read_text(encoding="utf-8")
    assert "alert(1)" in text and "<script>alert" not in text
    assert not re.search(r"(?:src|href)=[\"'](?!data:)", text) and "Content-Security-Policy" in text
    assert "0:01.0 – 0:02.0" in text and "2 found" in text
    assert [fine_clock(t) for t in (0, 59.96, 3723.4)] == ["0:00.0", "1:00.0", "1:02:03.4"]


@pytest.mark.skipif(browser.EXECUTABLE is None, reason="Chromium is not installed")
def test_a_reviewer_drags_the_box_and_the_interval(page, tmp_path):
    with browser.Browser(page, tmp_path / "profile") as chromium:
        chromium.wait("document.querySelectorAll('li').length == 2 && document.querySelector('img').complete")
        assert chromium.js("save.disabled")
        chromium.click("li:nth-child(1) [data-verdict=fixed]")
        chromium.click("li:nth-child(2) [data-verdict=wrong]")

        def middle(selector):
            return chromium.js(
                f"(() => {{ const e = document.querySelector('li').querySelector({json.dumps(selector)});"
                "e.scrollIntoView({block: 'center', behavior: 'instant'});"
                "const r = e.getBoundingClientRect();"
                "return [r.x + r.width / 2, r.y + r.height / 2, r.width, r.height]; })()"
            )

        width, height = middle(".shot")[2:]
        x, y = middle(".fix")[:2]
        chromium.drag((x, y), (x + width / 4, y))
        x, y = middle(".fix b")[:2]
        chromium.drag((x, y), (x, y + height / 8))
        length = middle(".range")[2]
        x, y = middle(".range [aria-label=end]")[:2]
        chromium.drag((x, y), (x + length / 4, y))
        reviews = chromium.js("reviews")
        assert set(reviews) == {"a#cat@1.00", EVIL} and not chromium.js("save.disabled")
        assert reviews[EVIL]["verdict"] == "wrong" and reviews[EVIL]["evidence"] is None
        [fixed] = reviews["a#cat@1.00"]["evidence"]
        assert fixed["box"] == pytest.approx([0.5, 0.25, 0.75, 0.875], abs=0.01)
        assert fixed["interval"] == pytest.approx([1.0, 3.0], abs=0.02) and fixed["object"] == "cat"
        chromium.click("#doubtful")
        assert chromium.js("[...document.querySelectorAll('li')].map(e => e.hidden)") == [True, False]
        (tmp_path / "reviews.json").write_text(json.dumps({"reviews": reviews}))
    from o3jax.report.review import from_dict

    for one in reviews.values():
        from_dict(one)  # is as a review must be
