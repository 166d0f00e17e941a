"""The synthetic world as each benchmark of the field is downloaded: its files, its spelling, its odd rows.

Small stand-ins to try an evaluation with, of two questions a clip. Odd on purpose, as in the real files:
fields that are missing, ends after the video's, spans as strings, several windows, three options, other
containers, zips, times without a decimal.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from data_pipelines.synthetic.benchmarks import choice, grounded
from data_pipelines.synthetic.benchmarks.files import Fact
from data_pipelines.synthetic.datasets import claim_folder, write_video
from data_pipelines.synthetic.scenes import make_scene, scene_seed

WRITERS: dict[str, Callable[[Path, Sequence[Fact]], None]] = {
    "vstar": grounded.vstar,
    "videozerobench": grounded.videozerobench,
    "tvgbench": grounded.tvgbench,
    "charades_sta": grounded.charades_sta,
    "activitynet": grounded.activitynet,
    **{f"timelens_{name}": grounded.timelens(name) for name in ("charades", "activitynet", "qvhighlights")},
    "extremewhenbench": grounded.extremewhenbench,
    "rextime": choice.rextime,
    "nextgqa": choice.nextgqa,
    "videomme": choice.videomme,
    "videomme_v2": choice.videomme_v2,
    "worldsense": choice.worldsense,
    "videommmu": choice.videommmu,
    "longvideo_reason": choice.longvideo_reason,
}


def make_benchmarks(
    out_dir: str | os.PathLike,
    clips: int = 5,
    level: int = 1,
    names: Sequence[str] = tuple(WRITERS),
) -> list[str]:
    """Returns the names of the benchmarks that it writes, each into its folder; two items a clip and more.

    Args:
        clips: how many clips, 5 or more for ten items.
        level: of the synthetic world.
        names: which benchmarks.

    Raises:
        UserError: if the folder holds something else.
    """
    out = Path(out_dir)
    claim_folder(out, {"world": "benchmarks", "count": clips, "level": level}, inside=("clips",))
    facts: list[Fact] = []
    for index in range(clips):
        scene = make_scene(scene_seed("test", index), level)
        path = out / "clips" / f"{scene.id}.mp4"
        if not path.exists():
            write_video(scene, path)
        facts += [Fact(len(facts) + k, scene, path, thing) for k, thing in enumerate(scene.objects[:2])]
    for name in names:
        shutil.rmtree(out / name, ignore_errors=True)
        (out / name).mkdir()
        WRITERS[name](out / name, facts)
    return list(names)
