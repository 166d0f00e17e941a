"""Supervised batches: clips with questions -> rows of static shape, through Grain.

A row holds one video once and all questions about it behind it: each question is a branch that
reads the video and itself, at the positions that it would have alone, so a row equals its questions
asked one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import UInt8

from data_pipelines import stgr
from data_pipelines.sample import Sample
from data_pipelines.synthetic import FPS, Scene, make_scene, scene_seed
from data_pipelines.video import read_video
from o3jax.errors import UserError
from o3jax.models.config import Config
from o3jax.prompts import templates
from o3jax.prompts.collate import collate
from o3jax.prompts.processor import Processor
from o3jax.video import probe

IGNORE = -100
Row = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Clip:
    """Questions about one video, and where its frames come from: a file, or a scene to render."""

    samples: tuple[Sample, ...]
    video: Path | Scene
    pairs: tuple[int, ...] | None = None  # of the sampled frame pairs, only these

    def frames(self, processor: Processor) -> tuple[UInt8[np.ndarray, "T H W 3"], dict[str, Any]]:
        """Returns the frames that the processor samples of the video, and their metadata."""
        if isinstance(self.video, Scene):
            fps, total = FPS, self.video.frame_count
        else:
            info = probe(self.video)
            # Presented at a constant rate, so that an index is a time also at a variable rate.
            fps, total = FPS, max(1, int(info.duration_s * FPS + 1e-6))
        indices = processor.sample_indices(total, fps)
        if self.pairs is not None:
            indices = np.concatenate([indices[2 * pair : 2 * pair + 2] for pair in self.pairs])
        times = indices / fps
        if isinstance(self.video, Scene):
            frames = self.video.render(times)
        else:
            frames = read_video(self.video, times_s=times).frames
        return frames, {"fps": fps, "frames_indices": indices}


class SyntheticClips:
    """The synthetic world without files: clip i of a split is rendered when it is read."""

    def __init__(self, split: str, level: int, questions: int, seed: int = 0, size: int = 1 << 31):
        self.split, self.level, self.questions, self.seed, self.size = split, level, questions, seed, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Clip:
        scene = make_scene(scene_seed(self.split, int(index), self.seed), self.level, self.questions)
        return Clip(tuple(scene.samples()), scene)


class FolderClips:
    """A dataset folder in the published (`stgr.json`) or the article's (`annotations.json`) format.

    Questions of one task about one video share a row, up to `questions` of them.

    Raises:
        UserError: if there is no annotation file, or a video is missing.
    """

    def __init__(self, folder: str | Path, questions: int):
        folder = Path(folder)
        grouped: dict[tuple[str, str], list[Sample]] = {}
        for sample in _load(folder):
            grouped.setdefault((sample.video_path or "", sample.task), []).append(sample)
        self.clips = []
        for (path, _), samples in grouped.items():
            video = folder / path
            if not video.is_file():
                raise UserError(f"{video} is missing: sample {samples[0].id} of {folder} needs it")
            for at in range(0, len(samples), questions):
                self.clips.append(Clip(tuple(samples[at : at + questions]), video))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[int(index)]


def _load(folder: Path) -> list[Sample]:
    for name, load in (("stgr.json", stgr.load_stgr), ("annotations.json", stgr.load_article)):
        if (folder / name).is_file():
            return load(folder / name)
    raise UserError(f"{folder} has neither stgr.json nor annotations.json: make one with experiments.data")


@dataclasses.dataclass(frozen=True)
class RowShape:
    """What rows are padded to: tokens, frame groups, patches of a group."""

    length: int
    groups: int
    patches: int


@dataclasses.dataclass(frozen=True)
class MakeRow(grain.transforms.Map):
    """Clip -> row."""

    processor: Processor
    config: Config
    shape: RowShape
    style: str = "plain"
    box_step: int = 1

    def map(self, clip: Clip) -> Row:
        """Returns the row of a clip: the model's batch arrays without their batch axis, and `labels`.

        `labels[s]` is the token that position s must predict, inside responses only.

        Raises:
            UserError: if the clip does not fit the row shape.
        """
        p, shape = self.processor, self.shape
        medium = p.read_video(*clip.frames(p))
        texts = [
            p.apply_chat_template(templates.messages(s.question, self.style, s.task)) for s in clip.samples
        ]
        prompts = [p.tokenizer(p.expand([text], videos=[medium])[0])["input_ids"] for text in texts]
        end = p.tokenizer.eos_token
        responses = [
            p.tokenizer(templates.response(s, self.box_step) + end)["input_ids"] for s in clip.samples
        ]
        split = 1 + max(i for i, t in enumerate(prompts[0]) if t == self.config.vision_end_token_id)
        prefix = prompts[0][:split]
        total = split + sum(len(a) - split + len(b) for a, b in zip(prompts, responses, strict=True))
        if total > shape.length:
            raise UserError(
                f"{clip.samples[0].id} needs {total} tokens, more than the {shape.length} of a row: "
                "raise config.row_length or lower config.questions_per_row"
            )
        inputs = {
            "input_ids": np.array([prefix]),
            "pixel_values_videos": medium.patches,
            "video_grid_thw": np.array([medium.grid]),
        }
        sizes = {"length": shape.length, "groups": shape.groups, "patches": shape.patches}
        row = {key: value[0] for key, value in collate(inputs, self.config, **sizes).items()}
        first = row.pop("next_position")
        row["branch_ids"] = np.zeros(shape.length, np.int32)
        row["labels"] = np.full(shape.length, IGNORE, np.int32)
        at = split
        for branch, (prompt, response) in enumerate(zip(prompts, responses, strict=True), start=1):
            if prompt[:split] != prefix:
                raise ValueError("questions of one row must share everything up to the end of the video")
            tokens = np.array(prompt[split:] + response, np.int32)
            stop, answer = at + len(tokens), at + len(prompt) - split
            row["input_ids"][at:stop] = tokens
            row["segment_ids"][at:stop] = 1
            row["branch_ids"][at:stop] = branch
            row["positions"][:, at:stop] = first + np.arange(len(tokens))
            row["labels"][answer - 1 : stop - 1] = response
            at = stop
        return row


def make_dataset(
    clips: Sequence[Clip], make_row: grain.transforms.Map, *, batch_size: int, seed: int, shuffle: bool
) -> grain.IterDataset:
    """Returns an endless, deterministic stream of batches, every array with a leading batch axis.

    Its iterator's state can be saved and restored; reading happens in a background thread.
    """
    data = grain.MapDataset.source(clips).seed(seed)
    if shuffle:
        data = data.shuffle()
    data = data.repeat().map(make_row).batch(batch_size, drop_remainder=True)
    # The library buffers 500 elements by default: 500 batches of video would fill the memory.
    return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
