"""Supervised rows: clips with questions -> arrays of static shape.

A clip is a video once and its questions behind it: each question is a continuation that reads the video and
itself, at the positions that it would have alone. Several clips may share a row, each a segment. Either
way a row equals its questions asked one by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import grain
import numpy as np

from data_pipelines.formats.sample import Sample
from data_pipelines.formats.targets import response_of
from data_pipelines.reading.feature_cache import FeatureCache
from data_pipelines.reading.frame_cache import Arrays
from data_pipelines.rows.clips import Clip
from data_pipelines.rows.costs import as_bytes, check_row, cost_of, failures_of
from data_pipelines.rows.evidence import interval_of, pointed_times, questions_of
from data_pipelines.rows.packing import RowCost
from data_pipelines.rows.pixels import Read, add_pointed, blank_clip, read_clip, reason, streams
from data_pipelines.rows.settings import RowSettings
from data_pipelines.rows.sizes import RowSize, size_of
from data_pipelines.rows.text import IGNORE, Written, supervised_text, write_prompts
from o3jax.errors import UserError
from o3jax.grounding import Grounding
from o3jax.models.batch import Batch, MissingFeatures, SupervisedBatch
from o3jax.prompts import templates
from o3jax.prompts.feedback import made_up


@dataclasses.dataclass(frozen=True)
class MakeRow(RowSettings, grain.transforms.Map):
    """Clips -> row."""

    supervised = True
    full_text: bool = False  # labels on the prompt too
    features: FeatureCache | None = None
    several_questions: bool = True  # of one clip, which are then continuations: not all kernels read them
    sizes: tuple[RowSize, ...] = ()  # of the frames of rows, where clips are unlike; see `rows.sizes`

    def write(self, clip: Clip) -> Written:
        """Returns the tokens of a clip, without decoding."""
        tokenizer, pointed = self.processor.tokenizer, np.zeros(0)
        plan, prefix, prompts = write_prompts(self, clip, [self._proposals(s) for s in clip.samples])
        responses = [
            tokenizer(self._response(s, templates.begun_by(tokenizer, prompt)))["input_ids"]
            for s, prompt in zip(clip.samples, prompts, strict=True)
        ]
        if self.reads_boxes_from_more(clip):
            pointed = pointed_times(clip.samples, self.dense_plan(clip).times_s)
        return Written(plan, prefix, prompts, responses, pointed)

    def _response(self, sample: Sample, begun: str) -> str:
        """Returns what is to be written behind a prompt, to its end."""
        tokenizer = self.processor.tokenizer
        return response_of(sample, self.box_step, begun, tokenizer.quoted_response) + tokenizer.eos_token

    def cost(self, clip: Clip) -> RowCost:
        """Returns what a clip takes of a row.

        Raises:
            UserError: if it has more of something than any row has room for.
        """
        return cost_of(self, clip, self.write(clip))

    def map(self, clips: Clip | Sequence[Clip]) -> SupervisedBatch:
        """Returns the row of one or more clips, without a batch axis.

        A clip that cannot be read keeps its place: zeros instead of frames, and nothing to learn.

        Raises:
            UserError: if the clips do not fit the row shape.
        """
        clips = (clips,) if isinstance(clips, Clip) else clips
        written = [self.write(clip) for clip in clips]
        return self._sized(written[0])._row(clips, written)

    def _sized(self, written: Written) -> MakeRow:
        """Returns what makes the row of a clip, whose frames have a size that all clips of the row share."""
        if not self.sizes:
            return self
        cost = RowCost(0, written.frame_pairs, patches=written.frames.patches)
        size = self.sizes[size_of(cost, self.sizes)]
        shape = dataclasses.replace(self.shape, frame_pairs=size.frame_pairs, patches=size.patches)
        return dataclasses.replace(self, shape=shape, sizes=())

    def _row(self, clips: Sequence[Clip], written: Sequence[Written]) -> SupervisedBatch:
        check_row(self, clips, written)
        read = [self._read(clip, one) for clip, one in zip(clips, written, strict=True)]
        errors = [one.error for one in read]
        media = [one.media for one in read]
        text, patches, labels, starts = supervised_text(self, written, media, self.full_text)
        for number, error in enumerate(errors, start=1):
            if error:
                labels[text.segment_ids == number] = IGNORE
        if not self.several_questions:
            text = dataclasses.replace(text, continuation_ids=None)
        inputs, truth = Batch(text, patches=patches), None
        if self.evidence is not None:
            dense, places = streams(self, written, read)
            questions, truth = questions_of(self, clips, written, errors, starts)
            add_pointed(self, patches, places, written, read)
            inputs = dataclasses.replace(inputs, dense=dense, places=places, questions=questions)
        row = SupervisedBatch(inputs, labels, truth, failures_of(self, clips, errors))
        if self.features is None:
            return row
        if self.evidence is None:
            clip_of = np.repeat(np.arange(len(written)) + 1, [one.frame_pairs for one in written])
            clip_of = np.pad(clip_of, (0, self.shape.frame_pairs - len(clip_of)))
        else:
            clip_of = inputs.places.clip
        missing = MissingFeatures(as_bytes([one.key for one in read], self.shape.clips, 64), clip_of)
        return self.features.fill(self.config.vision, row, missing, [one.features for one in read])

    def _proposals(self, sample: Sample) -> list[Grounding]:
        """Returns what the language model is told to look at, as it will be in use."""
        if self.evidence is None or self.config.evidence.feedback == "none":
            return []
        truth = [
            dataclasses.replace(mention, interval=interval_of(sample, mention))
            for mention in sample.mentions
            if mention.time_s is not None
        ]
        return made_up(truth, sample.id, sample.duration, anyway=sample.kind == "never")

    def _read(self, clip: Clip, written: Written) -> Read:
        """Returns the clip's pixels; zeros of the same shape where it cannot be read, or need not be."""
        try:
            key, kept = self.kept_features(clip, written)
            if kept is None:
                return dataclasses.replace(read_clip(self, clip, written), key=key)
        except UserError as failure:  # VideoError is one
            return dataclasses.replace(blank_clip(self, clip, written), error=reason(failure))
        return blank_clip(self, clip, written, kept)

    def kept_features(self, clip: Clip, written: Written) -> tuple[str, Arrays | None]:
        """Returns the key of the clip in the feature cache, and what is there; see `FeatureCache.find`."""
        if self.features is None:
            return "", None
        plan, dense = written.frames, None
        if self.evidence is not None:
            times, _, size = self.dense_plan(clip)
            dense = len(times), times[-1], size
        files = clip.source.files([frame.path for frame in plan.frames if frame.path is not None])
        asked = plan.frames, plan.size, plan.media, written.pointed, dense, self.reader.limits
        return self.features.find(files, *asked)
