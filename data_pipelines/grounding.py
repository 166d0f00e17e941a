"""Batches for the grounding warm-up: frames of the synthetic world and what covers each language token."""

from __future__ import annotations

import dataclasses

import grain
import numpy as np
from jaxtyping import Float

from data_pipelines.sft import Clip, Row, RowShape
from data_pipelines.synthetic import COLORS, SHAPES, Scene
from o3jax.models.config import Config
from o3jax.prompts.collate import collate
from o3jax.prompts.processor import Processor

_CLEARLY_COVERED = 0.25  # of the token's cell, or of the object where that is smaller
_CLEARLY_FREE = 0.05


@dataclasses.dataclass(frozen=True)
class MakeGroundingRow(grain.transforms.Map):
    """Clip of the synthetic world -> the tower's inputs and the targets of `o3jax.sft.grounding`."""

    processor: Processor
    config: Config
    shape: RowShape

    def map(self, clip: Clip) -> Row:
        """Returns one row of `shape.groups` random frame pairs; the targets are per language token."""
        frames, metadata = clip.frames(self.processor)
        rng = np.random.default_rng(clip.video.seed)
        pairs = np.sort(rng.choice(len(frames) // 2, self.shape.groups, replace=False))
        chosen = np.stack([2 * pairs, 2 * pairs + 1], 1).reshape(-1)
        times = metadata["frames_indices"][chosen] / metadata["fps"]
        metadata = metadata | {"frames_indices": metadata["frames_indices"][chosen]}
        medium = self.processor.read_video(frames[chosen], metadata)
        t, h, w = medium.grid
        pads = np.full(t * h * w // self.config.vision.merge_unit, self.config.video_token_id)
        inputs = {
            "input_ids": pads[None],
            "pixel_values_videos": medium.patches,
            "video_grid_thw": np.array([medium.grid]),
        }
        sizes = {"groups": self.shape.groups, "patches": self.shape.patches}
        row = {key: value[0] for key, value in collate(inputs, self.config, **sizes).items()}
        for key in ("input_ids", "segment_ids", "positions", "visual_index", "next_position"):
            del row[key]
        merge = self.config.vision.spatial_merge_size
        return row | token_targets(clip.video, times, (h // merge, w // merge))


def token_targets(scene: Scene, times_s: Float[np.ndarray, " n"], cells: tuple[int, int]) -> Row:
    """Returns what covers each cell of each frame pair: the object with the largest overlap, if any.

    Arrays [tokens, ...] with tokens = n / 2 * rows * columns: `object` (1 covered, 0 free, -1 in
    between), `present` in each frame, `box` (mean over the frames that show it), `color`, `shape`.
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
            boxes = [thing.box(t) for t in pair]
            shown = [box for box in boxes if box is not None]
            if not shown:
                continue
            box = np.mean(shown, axis=0)
            share = _overlap_share(cell, box)
            win = share > best
            best = np.maximum(best, share)
            out["present"][group, win] = [box is not None for box in boxes]
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
