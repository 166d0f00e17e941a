"""Supervised rows: clips with questions -> arrays of static shape.

A clip is a video once and its questions behind it: each question is a continuation that reads the video and
itself, at the positions that it would have alone. Several clips may share a row, each a segment. Either
way a row equals its questions asked one by one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import grain
import numpy as np
from jaxtyping import Float, Int, UInt8

from data_pipelines.formats.sample import Sample
from data_pipelines.reading.feature_cache import FeatureCache
from data_pipelines.reading.frame_cache import Arrays, CachedReader
from data_pipelines.reading.guarded import GuardedReader
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.evidence import (
    EvidenceShape,
    check_capacity,
    interval_of,
    mentions_of,
    pointed_times,
    truth_of,
)
from data_pipelines.rows.frames import FramePlan, FramesConfig, read_frames
from data_pipelines.rows.packing import RowCapacity, RowCost
from o3jax.errors import UserError
from o3jax.inputs.collate import collate
from o3jax.inputs.dense import dense_stream, pointed_frames, visual_places
from o3jax.inputs.processor import Medium, Processor
from o3jax.models.batch import (
    Batch,
    DenseStream,
    EvidenceTruth,
    Failures,
    MissingFeatures,
    Patches,
    Questions,
    SupervisedBatch,
    TextRow,
    VisualPlaces,
    map_arrays,
    put,
    take,
)
from o3jax.models.config import Config
from o3jax.prompts import templates
from o3jax.prompts.feedback import made_up, with_proposals
from o3jax.prompts.mentions import mention_positions

IGNORE = -100
_ERROR_BYTES = 300


@dataclasses.dataclass(frozen=True)
class RowShape:
    """What rows are padded to: tokens, frame pairs, patches of a pair, clips."""

    length: int
    frame_pairs: int
    patches: int
    clips: int = 1


@dataclasses.dataclass(frozen=True)
class Written:
    """A clip's frames as they will be, and its tokens: all that is known without decoding."""

    frames: FramePlan
    prefix: list[int]  # everything up to the end of the video
    prompts: list[list[int]]  # what follows it, of each question
    responses: list[list[int]]
    pointed: Float[np.ndarray, " m"]  # times of the frames that boxes are read from; no text shows them

    @property
    def frame_pairs(self) -> int:
        return self.frames.frame_pairs + len(self.pointed)

    @property
    def length(self) -> int:
        return len(self.prefix) + sum(map(len, self.prompts + self.responses))


@dataclasses.dataclass(frozen=True)
class Read:
    """The pixels of a clip, or zeros and why they could not be read, or the features that replace them."""

    media: Sequence[Medium]
    dense: tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, " n"]] | None
    pointed: UInt8[np.ndarray, "m H W 3"] | None
    error: str = ""
    key: str = ""  # of the entry that a feature cache does not have
    features: Arrays | None = None


@dataclasses.dataclass(frozen=True)
class MakeRow(grain.transforms.Map):
    """Clips -> row."""

    processor: Processor
    config: Config
    shape: RowShape
    style: str = "plain"
    box_step: int = 1
    evidence: EvidenceShape | None = None  # for a model that has evidence modules
    full_text: bool = False  # labels on the prompt too
    frames: FramesConfig = FramesConfig()
    reader: GuardedReader | CachedReader = dataclasses.field(default_factory=GuardedReader)
    features: FeatureCache | None = None

    def write(self, clip: Clip) -> Written:
        """Returns the tokens of a clip, without decoding."""
        p = self.processor
        plan, kind = clip.plan(p, self.frames), clip.source.kind
        prompts = [
            p.apply_chat_template(templates.messages(self._question(s), self.style, s.task, kind))
            for s in clip.samples
        ]
        ids = [p.tokenizer(plan.expand(prompt, p))["input_ids"] for prompt in prompts]
        split = 1 + max(i for i, t in enumerate(ids[0]) if t == self.config.vision_end_token_id)
        if any(one[:split] != ids[0][:split] for one in ids):
            raise ValueError("questions of one clip must share everything up to the end of the video")
        end = p.tokenizer.eos_token
        responses = [
            p.tokenizer(templates.response(s, self.box_step) + end)["input_ids"] for s in clip.samples
        ]
        prompts = [one[split:] for one in ids]
        return Written(plan, ids[0][:split], prompts, responses, self._pointed(clip))

    def cost(self, clip: Clip) -> RowCost:
        """Returns what a clip takes of a row.

        Raises:
            UserError: if it has more of something than any row has room for.
        """
        written = self.write(clip)
        if written.frames.patches > self.shape.patches:
            raise UserError(
                f"{clip.samples[0].id} has frames of {written.frames.patches} patches, more than the "
                f"{self.shape.patches} of a row: raise config.row_patches or lower the pixels of a frame"
            )
        tokens, frame_pairs = written.length, written.frame_pairs
        if self.evidence is None:
            return RowCost(tokens, frame_pairs, len(clip.samples))
        self._questions([clip], [written], [""], [[0] * len(clip.samples)])
        video = self.processor.video_config
        dense = clip.dense_plan(self.config.evidence, video.factor)
        grid = tuple(side // video.patch_size for side in dense.size)
        if grid[0] * grid[1] > self.evidence.patches:
            raise UserError(
                f"{clip.samples[0].id} has dense frames of {grid[0] * grid[1]} patches, more than the "
                f"{self.evidence.patches} of a row: raise config.evidence_shape.patches"
            )
        return RowCost(
            tokens, frame_pairs, len(clip.samples), -(-len(dense.times_s) // video.temporal_patch_size), grid
        )

    def capacity(self) -> RowCapacity:
        """Returns what a row has."""
        s, e = self.shape, self.evidence
        return RowCapacity(
            s.length, s.frame_pairs, e.questions if e else None, e.frame_pairs if e else None, s.clips
        )

    def map(self, clips: Clip | Sequence[Clip]) -> SupervisedBatch:
        """Returns the row of one or more clips, without a batch axis.

        There are labels inside responses only, or, as in the published cold start, on every token but padding
        and the video's. Continuations then differ in what follows the video, where one position predicts the
        first token of all: it has a label only if they begin alike.

        A clip that cannot be read keeps its place: zeros instead of frames, and nothing to learn.

        Raises:
            UserError: if the clips do not fit the row shape.
        """
        clips = (clips,) if isinstance(clips, Clip) else clips
        written = [self.write(clip) for clip in clips]
        self._check(clips, written)
        read = [self._read(clip, one) for clip, one in zip(clips, written, strict=True)]
        errors = [one.error for one in read]
        text, patches, labels, starts = self._text(written, read)
        inputs, truth = Batch(text, patches=patches), None
        if self.evidence is not None:
            dense, places = self._streams(written, read)
            questions, truth = self._questions(clips, written, errors, starts)
            self._add_pointed(patches, places, written, read)
            inputs = dataclasses.replace(inputs, dense=dense, places=places, questions=questions)
        row = SupervisedBatch(inputs, labels, truth, self._failures(clips, errors))
        if self.features is None:
            return row
        clip_of = np.repeat(np.arange(len(written)) + 1, [one.frame_pairs for one in written])
        clip_of = np.pad(clip_of, (0, self.shape.frame_pairs - len(clip_of)))
        keys, kept = [one.key for one in read], [one.features for one in read]
        return self.features.fill(
            self.config.vision,
            row,
            MissingFeatures(_bytes(keys, self.shape.clips, 64), inputs.places.clip if truth else clip_of),
            kept,
        )

    def _failures(self, clips: Sequence[Clip], errors: Sequence[str]) -> Failures:
        numbers = np.full(self.shape.clips, -1, np.int32)
        numbers[: len(clips)] = [clip.number for clip in clips]
        return Failures(numbers, _bytes(errors, self.shape.clips, _ERROR_BYTES))

    def _check(self, clips: Sequence[Clip], written: Sequence[Written]) -> None:
        total = sum(one.length for one in written)
        if total > self.shape.length:
            raise UserError(
                f"{clips[0].samples[0].id} needs {total} tokens, more than the {self.shape.length} of a row: "
                "raise config.row_length or lower config.questions_per_row"
            )
        frame_pairs = sum(one.frame_pairs for one in written)
        if frame_pairs > self.shape.frame_pairs:
            raise UserError(
                f"{clips[0].samples[0].id} needs {frame_pairs} frame pairs, more than the "
                f"{self.shape.frame_pairs} of a row: raise config.row_frame_pairs or lower "
                "config.questions_per_row"
            )
        if self.evidence is not None:
            count = sum(len(clip.samples) for clip in clips)
            check_capacity(
                clips[0].samples[0], count, self.evidence.questions, "questions in its row", "questions"
            )

    def _read(self, clip: Clip, written: Written) -> Read:
        """Returns the clip's pixels; zeros of the same shape where it cannot be read, or need not be."""
        c, p, plan = self.config, self.processor, written.frames
        dense, pointed = None, np.zeros((len(written.pointed), *plan.size, 3), np.uint8)
        error, kept = "", None
        try:
            key, kept = self._kept(clip, written)
            if kept is None:
                media = read_frames(plan, clip.source, self.reader, p)
                if self.evidence is not None:
                    dense = clip.dense(c.evidence, p.video_config.factor, self.reader)
                if len(pointed):
                    pointed = clip.source.frames_at(written.pointed, plan.size, self.reader)
                return Read(media, dense, pointed, key=key)
        except UserError as failure:  # VideoError is one
            error = str(failure) or type(failure).__name__
        media = [
            m._replace(patches=np.zeros((math.prod(m.grid), c.vision.patch_dim), np.uint8))
            for m in plan.media
        ]
        if self.evidence is not None:
            times, _, size = clip.dense_plan(c.evidence, p.video_config.factor)
            if kept is not None:  # of frame pairs
                times = np.repeat(kept[-1], p.video_config.temporal_patch_size)
            dense = np.zeros((len(times), *size, 3), np.uint8), times
        return Read(media, dense, pointed, error, features=kept)

    def _kept(self, clip: Clip, written: Written) -> tuple[str, Arrays | None]:
        """Returns the key of the clip in the feature cache, and what is there; see `FeatureCache.find`."""
        if self.features is None:
            return "", None
        plan, dense = written.frames, None
        if self.evidence is not None:
            times, _, size = clip.dense_plan(self.config.evidence, self.processor.video_config.factor)
            dense = len(times), times[-1], size
        files = clip.source.files([frame.path for frame in plan.frames if frame.path is not None])
        asked = plan.frames, plan.size, plan.media, written.pointed, dense, self.reader.limits
        return self.features.find(files, *asked)

    def _text(
        self, written: Sequence[Written], read: Sequence[Read]
    ) -> tuple[TextRow, Patches, Int[np.ndarray, " S"], list[list[int]]]:
        """Returns text, patches and labels, and of each clip the first slots of its responses."""
        shape = self.shape
        joined = np.concatenate([np.array(one.prefix, np.int32) for one in written])
        inputs: dict[str, np.ndarray] = {"input_ids": joined[None]}
        for kind, values, grids in (
            ("image", "pixel_values", "image_grid_thw"),
            ("video", "pixel_values_videos", "video_grid_thw"),
        ):
            media = [m for w, r in zip(written, read, strict=True) if w.frames.kind == kind for m in r.media]
            if media:
                inputs[values] = np.concatenate([medium.patches for medium in media])
                inputs[grids] = np.array([medium.grid for medium in media])
        flat = collate(inputs, self.config, frame_pairs=shape.frame_pairs, patches=shape.patches)
        flat = take(flat, 0)
        positions, visual = flat.text.positions, flat.text.visual_index
        row = TextRow(
            input_ids=np.zeros(shape.length, np.int32),
            segment_ids=np.zeros(shape.length, np.int32),
            positions=np.zeros((3, shape.length), np.int32),
            visual_index=np.full(shape.length, -1, np.int32),
            continuation_ids=np.zeros(shape.length, np.int32),
        )
        labels = np.full(shape.length, IGNORE, np.int32)
        at, source, starts = 0, 0, []
        for segment, (one, pixels) in enumerate(zip(written, read, strict=True), start=1):
            begin, split = at, at + len(one.prefix)
            here, there = slice(at, split), slice(source, source + len(one.prefix))
            row.input_ids[here] = one.prefix
            row.positions[:, here] = positions[:, there] - positions[:, [source]]
            row.visual_index[here] = visual[there]
            first = row.positions[0, split - 1] + 1
            at, source = split, there.stop
            starts.append([])
            for continuation, (prompt, response) in enumerate(
                zip(one.prompts, one.responses, strict=True), start=1
            ):
                tokens = np.array(prompt + response, np.int32)
                stop, answer = at + len(tokens), at + len(prompt)
                row.input_ids[at:stop] = tokens
                row.continuation_ids[at:stop] = continuation
                row.positions[:, at:stop] = first + np.arange(len(tokens))
                labelled = at if self.full_text else answer - 1
                labels[labelled : stop - 1] = tokens[labelled + 1 - at :]
                starts[-1].append(answer)
                at = stop
            row.segment_ids[begin:at] = segment
            if self.full_text:
                following = np.array(one.prefix[1:])
                pads = np.isin(following, (self.config.video_token_id, self.config.image_token_id))
                labels[begin : split - 1] = np.where(pads, IGNORE, following)
                if len(begun := {prompt[0] for prompt in one.prompts}) == 1:
                    labels[split - 1] = begun.pop()
            if pixels.error:
                labels[begin:at] = IGNORE
        return row, flat.patches, labels, starts

    def _question(self, sample: Sample) -> str:
        """Returns what the language model is asked: with proposals, where it will be given them."""
        if self.evidence is None or self.config.evidence.feedback == "none":
            return sample.question
        truth = [
            dataclasses.replace(mention, interval=interval_of(sample, mention))
            for mention in sample.mentions
            if mention.time_s is not None
        ]
        return with_proposals(sample.question, made_up(truth, sample.id, sample.duration), self.box_step)

    def _streams(self, written: Sequence[Written], read: Sequence[Read]) -> tuple[DenseStream, VisualPlaces]:
        """Returns the dense stream of all clips, and when and where their visual tokens are."""
        p, shape, c = self.processor, self.evidence, self.config
        window = c.evidence.window_s
        if len(written) > 1 and not math.isfinite(window):
            raise UserError(
                "clips cannot share a row if evidence.window_s has no end: set config.clips_per_row=1"
            )
        merge, patches, clock = c.vision.spatial_merge_size, self.shape.patches, 0.0
        streams, places = [], []
        for number, (one, pixels) in enumerate(zip(written, read, strict=True), start=1):
            dense = dense_stream(*pixels.dense, p.video_config, c.vision, patches=shape.patches)
            times = [(frame.time_s,) for frame in one.frames.frames] or [(0.0,)]
            shown = [
                visual_places(m.times_s or t, m.grid, merge, frame_pairs=m.grid[0], patches=patches)
                for m, t in zip(one.frames.media, times, strict=False)
            ]
            for parts, part in ((streams, dense), (places, map_arrays(_joined, *shown))):
                at = np.full(len(part.times), number, np.int32)
                parts.append(dataclasses.replace(part, clip=at, clock=part.times + np.float32(clock)))
            clock = max(streams[-1].clock.max(), places[-1].clock.max()) + window + 1
        cells = streams[0].cells
        if any((one.cells != cells).any() for one in streams):
            raise ValueError("clips of one row must have dense frames of one size")
        pairs = [dataclasses.replace(one, cells=None) for one in streams]  # cells are of all of them
        dense = map_arrays(lambda *arrays: _padded(_joined(*arrays), shape.frame_pairs), *pairs)
        shown = map_arrays(lambda *arrays: _padded(_joined(*arrays), self.shape.frame_pairs), *places)
        return dataclasses.replace(dense, cells=cells), shown

    def _pointed(self, clip: Clip) -> Float[np.ndarray, " m"]:
        """Returns the times of the clip's frames that boxes are read from, beside those that a text shows."""
        c = self.config.evidence
        if self.evidence is None or c.box_frames == "stream" or clip.source.kind == "image":
            return np.zeros(0)
        plan = clip.dense_plan(c, self.processor.video_config.factor)
        return pointed_times(clip.samples, plan.times_s)

    def _add_pointed(
        self, patches: Patches, places: VisualPlaces, written: Sequence[Written], read: Sequence[Read]
    ) -> None:
        """Writes the frames that boxes are read from behind the pairs that the texts show."""
        video, vision = self.processor.video_config, self.config.vision
        at = sum(one.frames.frame_pairs for one in written)
        for number, (one, pixels) in enumerate(zip(written, read, strict=True), start=1):
            if not (count := len(one.pointed)):
                continue
            sizes = {"frame_pairs": count, "patches": self.shape.patches}
            added = pointed_frames(pixels.pointed, one.pointed, one.frames.size, video, vision, **sizes)
            here = slice(at, at + count)
            put(patches, here, added.patches)
            first = np.argmax(places.clip == number)
            places.times[here], places.centres[here] = one.pointed, added.cells
            places.clock[here] = one.pointed + (places.clock - places.times)[first]
            places.clip[here] = number
            at += count

    def _questions(
        self,
        clips: Sequence[Clip],
        written: Sequence[Written],
        errors: Sequence[str],
        starts: Sequence[Sequence[int]],
    ) -> tuple[Questions, EvidenceTruth]:
        """Returns what is asked, where the mentions are, and what is true (nothing after an error)."""
        p, shape = self.processor, self.evidence
        row = Questions(
            ids=np.full((shape.questions, shape.question_length), -1, np.int32),
            mention_index=np.full((shape.questions, shape.mentions), -1, np.int32),
            clip=np.zeros(shape.questions, np.int32),
        )
        samples, mentions = [], []
        for number, (clip, one, error, begins) in enumerate(
            zip(clips, written, errors, starts, strict=True), start=1
        ):
            for sample, ids, start in zip(clip.samples, one.responses, begins, strict=True):
                q = len(samples)
                asked = p.tokenizer(sample.question)["input_ids"]
                found = mention_positions(p.tokenizer, ids)
                for count, capacity, what, field in (
                    (q + 1, shape.questions, "questions in its row", "questions"),
                    (len(asked), shape.question_length, "tokens in its question", "question_length"),
                    (len(found), shape.mentions, "mentions", "mentions"),
                ):
                    check_capacity(sample, count, capacity, what, field)
                row.ids[q, : len(asked)] = asked
                row.mention_index[q, : len(found)] = start + np.array(found, np.int32)
                row.clip[q] = number
                response = templates.response(sample, self.box_step)
                known = [None] * len(found) if error else mentions_of(sample, response, len(found))
                samples.append(dataclasses.replace(sample, intervals=()) if error else sample)
                mentions.append(known)
        return row, truth_of(samples, mentions, shape)


def _padded(x: np.ndarray, size: int) -> np.ndarray:
    if len(x) > size:
        raise UserError(
            f"the clips of a row have {len(x)} dense frame pairs, more than the {size} of a row: "
            "raise config.evidence_shape.frame_pairs"
        )
    return np.pad(x, [(0, size - len(x))] + [(0, 0)] * (x.ndim - 1))


def _joined(*arrays: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays)


def _bytes(texts: Sequence[str], rows: int, size: int) -> UInt8[np.ndarray, "rows size"]:
    """Returns texts as UTF-8, each cut or filled with zeros."""
    out = np.zeros((rows, size), np.uint8)
    for at, text in enumerate(texts):
        encoded = text.encode()[:size]
        out[at, : len(encoded)] = np.frombuffer(encoded, np.uint8)
    return out
