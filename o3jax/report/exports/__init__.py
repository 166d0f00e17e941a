"""What was found, in the formats of other tools: each a function of videos and a folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from o3jax.files import whole_folder
from o3jax.report.exports import cvat, label_studio, pictures, timed
from o3jax.report.moments import VideoMoments

EXPORTS = {
    "json": timed.write_json_file,
    "csv": timed.write_csv,
    "vtt": timed.write_vtt,
    "srt": timed.write_srt,
    "edl": timed.write_edl,
    "activitynet": timed.write_activitynet,
    "coco": pictures.write_coco,
    "yolo": pictures.write_yolo,
    "cvat": cvat.write_cvat,
    "label_studio": label_studio.write_label_studio,
}


def _here(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


def export(name: str, videos: Sequence[VideoMoments], folder: Path, run: Callable[..., Any] = _here) -> None:
    """Writes what was found into a folder, which is replaced when all is there.

    Args:
        name: of a format in `EXPORTS`.
        run: calls a function that reads a video, such as `GuardedReader.run`.

    Raises:
        UserError: if a video cannot be read any more, or the folder cannot be written.
    """
    Path(folder).parent.mkdir(parents=True, exist_ok=True)
    with whole_folder(folder, replace=True) as temporary:
        EXPORTS[name](videos, Path(temporary), run)
