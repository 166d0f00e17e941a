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
from jaxtyping import Float, UInt8

from data_pipelines.evidence import EvidenceShape, check_room, interval_of, mentions_of, targets
from data_pipelines.sample import Sample
from data_pipelines.synthetic import FPS, Scene, make_scene, scene_seed
from data_pipelines.video import read_video
from o3jax.errors import UserError
from o3jax.models.config import Config, EvidenceConfig
from o3jax.prompts import templates
from o3jax.prompts.collate import collate
from o3jax.prompts.dense import dense_size, dense_stream, read_dense, visual_places
from o3jax.prompts.feedback import Proposal, made_up, with_proposals
from o3jax.prompts.image import resize_image
from o3jax.prompts.mentions import mention_positions
from o3jax.prompts.processor import Medium, Processor
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

    def dense(
        self, processor: Processor, c: EvidenceConfig
    ) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"]]:
        """Returns all frames of the dense stream, small, and their times in seconds."""
        factor = processor.video_config.factor
        if isinstance(self.video, Scene):
            times = np.arange(self.video.frame_count) / FPS
            frames = self.video.render(times)
            size = dense_size(*frames.shape[1:3], c, factor)
            return np.stack([resize_image(frame, size) for frame in frames]), times
        clip = read_dense(self.video, c, factor)
        return clip.frames, clip.times_s


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
    """The clips of a dataset folder, from the usable samples that `index.index_folder` returns.

    Questions of one task about one video share a row, up to `questions` of them.
    """

    def __init__(self, folder: str | Path, samples: Sequence[Sample], questions: int):
        grouped: dict[tuple[str, str], list[Sample]] = {}
        for sample in samples:
            grouped.setdefault((sample.video_path or "", sample.task), []).append(sample)
        self.clips = []
        for (path, _), together in grouped.items():
            for at in range(0, len(together), questions):
                self.clips.append(Clip(tuple(together[at : at + questions]), Path(folder) / path))

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Clip:
        return self.clips[int(index)]


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
    evidence: EvidenceShape | None = None  # for a model that has evidence modules
    full_text: bool = False  # labels on the prompt too

    def map(self, clip: Clip) -> Row:
        """Returns the row of a clip: the model's batch arrays without their batch axis, and `labels`.

        `labels[s]` is the token that position s must predict: inside responses only, or, as in the
        published cold start, every token but padding and the video's. Branches then differ in what
        follows the video, where one position predicts the first token of all: it has a label only if
        they begin alike. With an evidence shape there are also the dense stream and what
        `data_pipelines.evidence.targets` returns.

        Raises:
            UserError: if the clip does not fit the row shape.
        """
        p, shape = self.processor, self.shape
        medium = p.read_video(*clip.frames(p))
        texts = [
            p.apply_chat_template(templates.messages(self._question(s), self.style, s.task))
            for s in clip.samples
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
        at, starts = split, []
        for branch, (prompt, response) in enumerate(zip(prompts, responses, strict=True), start=1):
            if prompt[:split] != prefix:
                raise ValueError("questions of one row must share everything up to the end of the video")
            tokens = np.array(prompt[split:] + response, np.int32)
            stop, answer = at + len(tokens), at + len(prompt) - split
            row["input_ids"][at:stop] = tokens
            row["segment_ids"][at:stop] = 1
            row["branch_ids"][at:stop] = branch
            row["positions"][:, at:stop] = first + np.arange(len(tokens))
            labelled = at if self.full_text else answer - 1
            row["labels"][labelled : stop - 1] = tokens[labelled + 1 - at :]
            starts.append(answer)
            at = stop
        if self.full_text:
            following = np.array(prefix[1:])
            video = following == self.config.video_token_id
            row["labels"][: split - 1] = np.where(video, IGNORE, following)
            if len(begun := {prompt[split] for prompt in prompts}) == 1:
                row["labels"][split - 1] = begun.pop()
        if self.evidence is not None:
            row |= self._evidence(clip, medium, responses, starts)
        return row

    def _question(self, sample: Sample) -> str:
        """Returns what the language model is asked: with proposals, where it will be given them."""
        if self.evidence is None or self.config.evidence.feedback == "none":
            return sample.question
        duration = sample.duration or max((m.time for m in sample.mentions if m.time), default=0.0)
        truth = [
            Proposal(m.time, interval_of(sample, m), m.boxes[0] if m.boxes else None)
            for m in sample.mentions
            if m.time is not None
        ]
        return with_proposals(sample.question, made_up(truth, sample.id, duration), self.box_step)

    def _evidence(self, clip: Clip, medium: Medium, responses: list[list[int]], starts: list[int]) -> Row:
        """Returns the arrays that only the evidence modules read; `starts` are the responses' first slots."""
        p, shape, c = self.processor, self.evidence, self.config
        check_room(clip.samples[0], len(clip.samples), shape.questions, "questions in its row", "questions")
        frames, times = clip.dense(p, c.evidence)
        row = dense_stream(
            frames, times, p.video_config, c.vision, groups=shape.groups, patches=shape.patches
        )
        sizes = {"groups": self.shape.groups, "patches": self.shape.patches}
        row |= visual_places(medium.times_s, medium.grid, c.vision.spatial_merge_size, **sizes)
        row["question_ids"] = np.full((shape.questions, shape.question_length), -1, np.int32)
        row["mention_index"] = np.full((shape.questions, shape.mentions), -1, np.int32)
        mentions = []
        for q, (sample, ids, start) in enumerate(zip(clip.samples, responses, starts, strict=True)):
            asked = p.tokenizer(sample.question)["input_ids"]
            found = mention_positions(p.tokenizer, ids)
            for count, room, what, field in (
                (len(asked), shape.question_length, "tokens in its question", "question_length"),
                (len(found), shape.mentions, "mentions", "mentions"),
            ):
                check_room(sample, count, room, what, field)
            row["question_ids"][q, : len(asked)] = asked
            row["mention_index"][q, : len(found)] = start + np.array(found, np.int32)
            response = templates.response(sample, self.box_step)
            mentions.append(mentions_of(sample, response, len(found)))
        return row | targets(clip.samples, mentions, shape)


def make_dataset(
    clips: Sequence[Clip],
    transforms: Sequence[grain.transforms.Map | grain.transforms.RandomMap],
    *,
    batch_size: int,
    seed: int,
    shuffle: bool,
) -> grain.IterDataset:
    """Returns an endless, deterministic stream of batches, every array with a leading batch axis.

    `transforms` make a row of a clip, one after the other.

    Its iterator's state can be saved and restored; reading happens in a background thread.
    """
    data = grain.MapDataset.source(clips).seed(seed)
    if shuffle:
        data = data.shuffle()
    data = data.repeat().apply(list(transforms)).batch(batch_size, drop_remainder=True)
    # The library buffers 500 elements by default: 500 batches of video would fill the memory.
    return data.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4))
