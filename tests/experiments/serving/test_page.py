"""The page in a real browser: a video is asked, its evidence is clicked, mended and saved."""

from __future__ import annotations

import json

import pytest

from tests.support import browser

pytestmark = pytest.mark.skipif(browser.EXECUTABLE is None, reason="Chromium is not installed")
QUESTION = "When does the first object appear?"
# A rectangle of the report, in pixels of the window.
RECT = """((selector) => {
  const outer = report.getBoundingClientRect(), d = report.contentDocument;
  const r = d.querySelector(selector).getBoundingClientRect();
  return [outer.x + report.clientLeft + r.x, outer.y + report.clientTop + r.y, r.width, r.height];
})"""
READY = "report.contentDocument.documentElement.dataset.video == 'ready'"


@pytest.fixture(scope="module")
def page(server, tmp_path_factory):
    """The page, on a window that shows the report whole."""
    with browser.Browser(f"{server.url}/", tmp_path_factory.mktemp("profile")) as page:
        size(page, 1200, 1400)
        page.wait("document.documentElement.dataset.ready == 'yes'")
        yield page


def size(page, width, height, mobile=False):
    page.call(
        "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile
    )


def inside(page, expression):
    return page.js(f"(() => {{ const d = report.contentDocument; return {expression}; }})()")


def rect(page, selector):
    return page.js(f"{RECT}({json.dumps(selector)})")


def middle(x, y, width, height):
    return x + width / 2, y + height / 2


def test_ask_see_mend_and_save(server, page, clip):
    page.choose("#upload", clip)
    page.wait("file.value.startsWith('file-') && document.activeElement === question")
    page.js(f"question.value = {json.dumps(QUESTION)}")
    page.press("Enter")  # no mouse is needed
    page.wait("!report.hidden")
    answer = page.js("document.querySelector('#answer').textContent")
    page.wait(READY)
    assert answer and inside(page, "d.querySelector('.answer').textContent") == answer
    assert page.js("state.textContent") == "Answered"

    kept = max(
        (server.folder / "work" / "answers").glob("answer-*[0-9a-f].json"), key=lambda p: p.stat().st_mtime
    )
    record = json.loads(kept.read_text())
    item, (width, height) = record["evidence"][0], record["video"]["size"]
    page.js("report.scrollIntoView()")
    inside(page, "d.querySelector('.screen').scrollIntoView({block: 'center'})")
    page.js("report.contentDocument.querySelector('[data-evidence]').click()")
    video = "report.contentDocument.querySelector('video')"
    page.wait(f"!{video}.seeking && Math.abs({video}.currentTime - {item['frame'] / 25}) < 0.01")
    page.wait("report.contentDocument.querySelector('#overlay div') !== null")
    screen, box = rect(page, "#overlay"), rect(page, "#overlay div:not(.stated)")
    scale = screen[2] / width
    found = [(box[0] - screen[0]) / scale, (box[1] - screen[1]) / scale]
    found += [found[0] + box[2] / scale, found[1] + box[3] / scale]
    assert found == pytest.approx(item["box_px"], abs=2)

    inside(page, "d.querySelector('[data-verdict=fixed]').click()")
    page.wait("report.contentDocument.querySelector('.editor .box') !== null")
    x, y = middle(*rect(page, ".editor .se"))
    page.drag((x, y), (x - 10 * scale, y - 6 * scale))  # of the video's pixels
    x, y = middle(*rect(page, "#range .start"))
    second = rect(page, "#timeline")[2] / record["video"]["duration_s"]
    page.drag((x, y), (x + 0.5 * second, y))
    inside(page, "d.querySelector('#fix-answer').value = 'At 3 s'")
    inside(page, "d.querySelector('#save').click()")
    page.wait("report.contentDocument.querySelector('#saved').textContent == 'Saved'")
    review = json.loads(kept.with_suffix(".review.json").read_text())
    mended = review["evidence"][0]
    assert (review["verdict"], review["answer"]) == ("fixed", "At 3 s")
    x1, y1, x2, y2 = item["box"]
    assert mended["box"] == pytest.approx([x1, y1, x2 - 10 / width, y2 - 6 / height], abs=1.5 / width)
    start, end = item["interval"]
    assert mended["interval"] == pytest.approx([start + 0.5, end], abs=0.05)
    assert mended["time_s"] == item["time_s"] and review["evidence"][1:] == [
        {name: other[name] for name in ("object", "time_s", "box", "interval")}
        for other in record["evidence"][1:]
    ]


def test_it_is_for_everybody(page):
    """Each control has a name; narrow and dark windows; both languages; nothing from elsewhere."""
    for element in page.js(
        "[...document.querySelectorAll('main input, main select, main textarea, main button')]"
        ".filter(e => e.checkVisibility()).map(e => [e.id, (e.labels?.length ? e.labels[0] : e).textContent])"
    ):
        assert element[1].strip(), element
    assert page.js("document.querySelectorAll('[aria-live], [role=status], [role=alert]').length") == 3
    page.js("byId('language').value = 'zh'; byId('language').dispatchEvent(new Event('change'))")
    assert page.js("[byId('send').textContent, document.documentElement.lang]") == ["提问", "zh-CN"]
    page.js("translate('en')")
    size(page, 360, 740, mobile=True)
    assert page.js("document.documentElement.scrollWidth") == 360
    light = page.js("getComputedStyle(document.body).backgroundColor")
    page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.js("getComputedStyle(document.body).backgroundColor") != light
    size(page, 1200, 1400)


def test_a_wrong_question_is_told_and_words_are_words(page):
    page.js("byId('start_s').value = 50")
    page.js("question.value = '<img src=x onerror=alert(1)>'")
    page.click("#send")
    page.wait("!error.hidden")
    assert "start_s is 50" in page.js("error.textContent") and page.js("byId('asked').children.length") == 0
    page.js("byId('start_s').value = ''")
    page.click("#history li:first-child button")  # earlier questions are there
    page.wait(f"!report.hidden && {READY}")
    requested = [
        e["params"]["request"]["url"] for e in page.events if e["method"] == "Network.requestWillBeSent"
    ]
    origin = page.js("location.origin")
    assert all(url.startswith((origin, "data:", "blob:")) for url in requested) and requested
    assert not [e for e in page.events if e["method"] == "Runtime.exceptionThrown"]
