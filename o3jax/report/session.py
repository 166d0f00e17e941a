"""The page of a run over many videos: what was found in each, with pictures, times and filters."""

from __future__ import annotations

import base64
import os
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from o3jax.files import whole_file
from o3jax.printing import fine_clock
from o3jax.report.moments import Moment
from o3jax.report.pages import page_template
from o3jax.verify import confidence

MOST_MOMENTS, MOST_PICTURES = 2000, 400  # of a page


def write_session(folder: Path, title: str, records: Sequence[Mapping[str, Any]]) -> Path:
    """Returns the page that it writes, `index.html`; it holds its pictures and loads nothing.

    Args:
        folder: of the run, to which the records' `thumbnail` and `clip` are relative.
        records: one for each video: file, duration_s, moments and chapters.
    """
    left, pictures, videos = MOST_MOMENTS, MOST_PICTURES, []
    for record in records:
        moments = []
        for values in record["moments"][:left]:
            moment, picture = Moment.from_dict(values), None
            if pictures and "thumbnail" in values and (folder / values["thumbnail"]).is_file():
                pictures -= 1
                picture = base64.b64encode((folder / values["thumbnail"]).read_bytes()).decode()
            moments.append(
                {
                    **values,
                    "picture": picture,
                    "sure": confidence.format_confidence(moment.confidence),
                    "level": "low" if moment.needs_review else confidence.label(moment.confidence),
                    "box": moment.key.box if moment.key else None,
                    "time_s": moment.key.time_s if moment.key else None,
                }
            )
        left -= len(moments)
        videos.append({**record, "name": os.path.basename(record["file"]), "moments": moments})
    found = sum(len(record["moments"]) for record in records)
    page = page_template(Path(__file__).with_name("session.html")).render(
        title=title,
        videos=videos,
        counts=sorted(Counter(m["label"] for record in records for m in record["moments"]).items()),
        found=found,
        left_out=max(0, found - MOST_MOMENTS),
        nonce=secrets.token_hex(16),
        clock=fine_clock,
        place=lambda time_s, video: round(100 * min(time_s / max(video["duration_s"], 1e-3), 1.0), 3),
    )
    with whole_file(folder / "index.html") as path:
        path.write_text(page, encoding="utf-8", errors="replace")
    return folder / "index.html"
