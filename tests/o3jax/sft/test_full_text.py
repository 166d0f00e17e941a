"""Labels on the whole text, as the published cold start has them: everything but padding and the video."""

from __future__ import annotations

import pytest

from data_pipelines.rows.clips import Clip
from data_pipelines.rows.settings import RowShape
from data_pipelines.rows.supervised import MakeRow
from data_pipelines.synthetic.clips import SyntheticClips
from o3jax.hf import config_from_hf
from o3jax.inputs.processor import load_processor
from o3jax.prompts import templates
from o3jax.train.token_loss import IGNORE

LENGTH = 640
# What a row of one question says, the video's own tokens as "#"; each but the first token is a label.
WHOLE = (
    "<|im_start|>user\n"
    "<0.6 seconds><|vision_start|>####<|vision_end|>"
    "<3.0 seconds><|vision_start|>####<|vision_end|>"
    "<5.4 seconds><|vision_start|>####<|vision_end|>"
    "{question}<|im_end|>\n<|im_start|>assistant\n{response}<|im_end|>"
)


@pytest.fixture(scope="module")
def make(video_model):
    """A function that returns the row of a clip with labels on all of it, and its tokens' texts."""
    processor, config = load_processor(video_model), config_from_hf(video_model)
    maker = MakeRow(processor, config, RowShape(LENGTH, 3, 16), full_text=True)

    def row(clip: Clip) -> tuple[dict, list[str], list[str | None]]:
        made = maker.map(clip)
        words = [processor.decode([i], skip_special_tokens=False) for i in made.inputs.text.input_ids]
        labels = [
            None if i == IGNORE else processor.decode([i], skip_special_tokens=False) for i in made.labels
        ]
        return made, words, labels

    return row


def test_every_token_but_the_first_the_video_and_the_padding(make):
    clip = SyntheticClips("train", 1, questions=1)[0]
    row, words, labels = make(clip)
    count = int((row.inputs.text.segment_ids > 0).sum())
    said = "".join(words[:count]).replace("<|video_pad|>", "#")
    sample = clip.samples[0]
    assert said == WHOLE.format(question=sample.question, response=templates.response(sample))
    # By hand: the next word, none for the video's and none after the last.
    for at in range(LENGTH):
        wanted = words[at + 1] if at + 1 < count else None
        assert labels[at] == (None if wanted == "<|video_pad|>" else wanted), at
    assert labels[count - 1] is None and sum(label == "<|vision_end|>" for label in labels) == 3


def test_continuations_have_their_own_labels(make):
    clip = SyntheticClips("train", 1, questions=3)[0]
    row, words, labels = make(clip)
    alone = [make(Clip((sample,), clip.source)) for sample in clip.samples]
    video = int(
        (row.inputs.text.continuation_ids[: (row.inputs.text.segment_ids > 0).sum()] == 0).sum()
    )  # tokens up to its end
    assert labels[: video - 1] == alone[0][2][: video - 1]
    # Behind the video one position would have to predict three beginnings.
    begun = [words[video] for _, words, _ in alone]
    assert labels[video - 1] == (begun[0] if len(set(begun)) == 1 else None)
    assert len(set(begun)) > 1
    for continuation, (single, _, expected) in enumerate(alone, start=1):
        mine = row.inputs.text.continuation_ids == continuation
        count = int((single.inputs.text.segment_ids > 0).sum())
        assert [label for label, own in zip(labels, mine, strict=True) if own] == expected[video:count]


def test_continuations_that_begin_alike_share_that_label(make):
    clip = SyntheticClips("train", 1, questions=1)[0]
    row, words, labels = make(Clip(clip.samples * 2, clip.source))
    video = int((row.inputs.text.continuation_ids == 1).argmax())
    assert labels[video - 1] == words[video]


def test_the_default_labels_responses_only(video_model):
    clip = SyntheticClips("train", 1, questions=1)[0]
    processor, config = load_processor(video_model), config_from_hf(video_model)
    row = MakeRow(processor, config, RowShape(LENGTH, 3, 16)).map(clip)
    said = processor.decode(row.labels[row.labels != IGNORE], skip_special_tokens=False)
    assert said == templates.response(clip.samples[0]) + "<|im_end|>"
