"""The worst answers as pages: a list with filters, and the report of each, which shows where the video was
looked at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipelines.formats.benchmarks.item import Item
from data_pipelines.formats.benchmarks.media import local
from experiments.evaluation.benchmarks.analysis import KINDS
from o3jax.errors import UserError
from o3jax.files import whole_file
from o3jax.prompts import coords, grammar
from o3jax.report.answer import Answer, Evidence, plain_text, question_language
from o3jax.report.html import write_report
from o3jax.report.pages import page_template
from o3jax.video import PRESENTED_FPS

_REPORTS = 10  # of the cases that have a report of their own; each holds its video


def write_page(result: Mapping[str, Any], items: Sequence[Item], folder: Path) -> Path:
    """Returns the page of the worst cases that it writes, `worst.html`, beside a folder of their reports."""
    by_id, rows = {item.id: item for item in items}, {row["id"]: row for row in result["rows"]}
    cases = []
    for rank, item_id in enumerate(result["errors"]["worst"]):
        row, item = rows[item_id], by_id[item_id]
        report = f"worst/{rank + 1}.html" if rank < _REPORTS else None
        if report and not _write_report(row, item, result, folder / report):
            report = None
        cases.append({"rank": rank + 1, "row": row, "item": item, "report": report, **_rail(row, item)})
    used = {name: words for name, words in KINDS.items() if any(name in c["row"]["errors"] for c in cases)}
    page = page_template(Path(__file__).with_name("worst.html")).render(
        result=result, cases=cases, kinds=used
    )
    with whole_file(folder / "worst.html") as path:
        path.write_text(page, encoding="utf-8", errors="replace")
    return folder / "worst.html"


def _rail(row: Mapping[str, Any], item: Item) -> dict[str, Any]:
    """Returns the true and the stated intervals as (left, width) in percent of the video."""
    parsed = row["parsed"] or {}
    said = [parsed["interval"]] if parsed.get("interval") else []
    length = (
        item.duration
        or row.get("video", {}).get("duration_s")
        or max((e for _, e in item.intervals), default=1)
    )

    def bars(intervals: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        shares = [(min(max(t / length, 0), 1) for t in one) for one in intervals if length and _finite(one)]
        return [(round(100 * a, 2), round(100 * max(b - a, 0.004), 2)) for a, b in shares]

    return {"truth": bars(item.intervals), "said": bars(said), "length": length}


def _finite(numbers: Sequence[float]) -> bool:
    return all(math.isfinite(number) for number in numbers)


def _write_report(row: Mapping[str, Any], item: Item, result: Mapping[str, Any], path: Path) -> bool:
    """Returns whether a report of the answer could be written; its video may be gone."""
    if "texts" not in row:
        return False
    path.parent.mkdir(exist_ok=True)
    about = row["video"] if "video" in row else None
    if about is None:
        return False
    texts = row["texts"]
    raw = texts.get("answer") or texts.get("vqa") or texts.get("level3") or next(iter(texts.values()))
    parsed, language = grammar.parse(raw), question_language(item.question)
    probability = [one["probability"] for one in row["decoded"].values()]
    answer = Answer(
        question=item.question,
        text=plain_text(parsed.answer or raw, language),
        evidence=tuple(_evidence(parsed, about)),
        intervals=parsed.intervals,
        confidence=sum(probability) / len(probability),
        reasoning=parsed.think,
        raw="\n\n".join(f"[{part}]\n{text}" for part, text in texts.items()),
        video={"path": item.video, "fps": PRESENTED_FPS, "notes": [], **about},
        model=result["model"]["name"],
    )
    try:
        with local(item.video) as video:
            write_report(answer, video, path)
    except UserError:
        return False
    return True


def _evidence(parsed: grammar.Parsed, about: Mapping[str, Any]) -> list[Evidence]:
    width, height = about["size"]
    found = []
    for claim in parsed.claims:
        if claim.time_s is None or claim.time_s > about["duration_s"]:
            continue
        box = claim.boxes[0] if claim.boxes else None
        px = coords.convert(box, coords.NORMALISED, coords.pixels(width, height)) if box else None
        found.append(
            Evidence(
                object=claim.object,
                time_s=claim.time_s,
                boxes=claim.boxes,
                confidence=1.0,
                frame=coords.frame_index(claim.time_s, PRESENTED_FPS),
                box_px=tuple(int(c) for c in px) if px else None,
            )
        )
    return found
