"""Grounding in single frames of the synthetic world: what covers each language token, and captions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float

from data_pipelines.formats.sample import Sample
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.frames import FramesConfig
from data_pipelines.rows.settings import RowShape
from data_pipelines.synthetic.clips import SceneSource
from data_pipelines.synthetic.scenes import COLORS, FPS, SHAPES, Object, Scene, make_scene, scene_seed
from o3jax.grounding import Box
from o3jax.inputs.collate import collate
from o3jax.inputs.processor import Processor
from o3jax.models.batch import GroundingBatch, take
from o3jax.models.config import Config
from o3jax.prompts import coords, grammar
from o3jax.tasks import SPATIO_TEMPORAL

_CLEARLY_COVERED = 0.25  # of the token's cell, or of the object where that is smaller
_CLEARLY_FREE = 0.05


class FramePairs:
    """A few frame pairs of every synthetic clip, and the caption that lists their objects.

    Pairs that show much are preferred. Reading one frame is what every question needs, and short
    sequences teach it cheaply.
    """

    def __init__(self, processor: Processor, level: int, pairs: int, seed: int):
        self.processor, self.level, self.pairs, self.seed = processor, level, pairs, seed

    def __len__(self) -> int:
        return 1 << 31

    def __getitem__(self, index: int) -> Clip:
        scene = make_scene(scene_seed("train", int(index), self.seed), self.level)
        indices = self.processor.sample_indices(scene.frame_count, scene.fps)
        times = indices.reshape(-1, 2) / scene.fps
        shown = [sum(len(_boxes(thing, pair)) for thing in scene.objects) for pair in times]
        # Pairs that show much teach much; the noise of one object keeps the others from never coming.
        rank = shown + 2 * np.random.default_rng(scene.seed).random(len(times))
        pairs = np.sort(np.argsort(-rank)[: self.pairs]).tolist()
        times = [times[pair] for pair in pairs]
        sample = caption(scene, times, ("en", "zh")[index % 2])
        return Clip((sample,), SceneSource(scene), tuple(pairs), number=int(index))


def caption(scene: Scene, pair_times: Sequence[Float[np.ndarray, " 2"]], language: str) -> Sample:
    """Returns a sample whose answer names the objects of each pair, left to right, with their mean boxes."""
    claims = []
    for times in pair_times:
        shown = [(thing, boxes) for thing in scene.objects if (boxes := _boxes(thing, times))]
        for thing, boxes in sorted(shown, key=lambda item: item[1][0][0]):
            box = tuple(np.mean(boxes, axis=0).tolist())
            time = float(f"{times.mean():.1f}")  # as its label says
            claims.append(grammar.render_claim(thing.name(language), [box], time, coords.NORMALISED))
    return Sample(
        id=f"{scene.id}-caption",
        source=f"synthetic-l{scene.level}",
        task=SPATIO_TEMPORAL,
        question={"en": "What is visible?", "zh": "能看到什么?"}[language],
        answer="; ".join(claims) or {"en": "nothing", "zh": "无"}[language],
        language=language,
    )


def _boxes(thing: Object, times_s: Float[np.ndarray, " n"]) -> list[Box]:
    return [box for time in times_s if (box := thing.box(time)) is not None]


@dataclasses.dataclass(frozen=True)
class MakeGroundingRow(grain.transforms.Map):
    """Clip of the synthetic world -> the tower's inputs and the targets of `o3jax.sft.grounding`."""

    processor: Processor
    config: Config
    shape: RowShape

    def map(self, clip: Clip) -> GroundingBatch:
        """Returns one row, without a batch axis."""
        plan = clip.plan(self.processor, FramesConfig())
        times = np.array([frame.time_s for frame in plan.frames])
        metadata = {"fps": FPS, "frames_indices": np.rint(times * FPS).astype(np.int64)}
        medium = self.processor.read_video(clip.source.scene.render(times), metadata)
        t, h, w = medium.grid
        pads = np.full(t * h * w // self.config.vision.merge_unit, self.config.video_token_id)
        inputs = {
            "input_ids": pads[None],
            "pixel_values_videos": medium.patches,
            "video_grid_thw": np.array([medium.grid]),
        }
        sizes = {"frame_pairs": self.shape.frame_pairs, "patches": self.shape.patches}
        patches = take(collate(inputs, self.config, **sizes).patches, 0)
        merge = self.config.vision.spatial_merge_size
        return GroundingBatch(patches, **token_targets(clip.source.scene, times, (h // merge, w // merge)))


def token_targets(
    scene: Scene, times_s: Float[np.ndarray, " n"], cells: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Returns what covers each cell of each frame pair: the object with the largest overlap, if any.

    By the names of `GroundingBatch`'s fields, with tokens = n / 2 * rows * columns; a box is the mean over
    the frames that show the object.
    """
    rows, columns = cells
    top, left = np.meshgrid(np.arange(rows) / rows, np.arange(columns) / columns, indexing="ij")
    cell = np.stack([left, top, left + 1 / columns, top + 1 / rows], -1).reshape(-1, 4)
    out = {
        "object": np.zeros((len(times_s) // 2, len(cell)), np.int32),
        "present": np.zeros((len(times_s) // 2, len(cell), 2), np.float32),
        "box": np.zeros((len(times_s) // 2, len(cell), 4), np.float32),
        "color": np.zeros((len(times_s) // 2, len(cell)), np.int32),
        "shape": np.zeros((len(times_s) // 2, len(cell)), np.int32),
    }
    for group in range(len(times_s) // 2):
        pair = times_s[2 * group : 2 * group + 2]
        best = np.zeros(len(cell))
        for thing in scene.objects:
            boxes = _boxes(thing, pair)
            if not boxes:
                continue
            box = np.mean(boxes, axis=0)
            share = _overlap_share(cell, box)
            win = share > best
            best = np.maximum(best, share)
            out["present"][group, win] = [thing.box(time) is not None for time in pair]
            out["box"][group, win] = box
            out["color"][group, win] = list(COLORS).index(thing.color)
            out["shape"][group, win] = SHAPES.index(thing.shape)
        out["object"][group] = np.where(best >= _CLEARLY_COVERED, 1, np.where(best > _CLEARLY_FREE, -1, 0))
    return {key: value.reshape(-1, *value.shape[2:]) for key, value in out.items()}


def _overlap_share(cells: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Returns the overlap of each cell with a box, as a share of the smaller of the two."""
    sides = np.minimum(cells[:, 2:], box[2:]) - np.maximum(cells[:, :2], box[:2])
    overlap = np.prod(np.maximum(sides, 0), -1)
    area = np.prod(cells[0, 2:] - cells[0, :2])
    return overlap / min(area, np.prod(box[2:] - box[:2]))
