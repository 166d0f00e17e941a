"""The processor: settings files of all dialects, and mistakes that are named."""

import json
import shutil

import numpy as np
import pytest

from o3jax.errors import UserError
from o3jax.inputs import image as media
from o3jax.inputs.processor import load_processor
from tests.o3jax.inputs.test_processor import _clip, _picture, _user


def _settings(**changes):
    return {"size": {"shortest_edge": 1024, "longest_edge": 4096}, "patch_size": 8, **changes}


def test_dialects_of_preprocessor_files(tmp_path):
    assert media.read_image_config(tmp_path) == media.ImageConfig()
    assert media.read_video_config(tmp_path) == media.VideoConfig()
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": 1024, "max_pixels": 4096, "patch_size": 8, "image_mean": [0.1, 0.2, 0.3]})
    )
    (tmp_path / "video_preprocessor_config.json").write_text(json.dumps(_settings(fps=4, min_frames=2)))
    image, video = media.read_image_config(tmp_path), media.read_video_config(tmp_path)
    assert (image.min_pixels, image.max_pixels, image.patch_size) == (1024, 4096, 8)
    assert image.image_mean == (0.1, 0.2, 0.3)
    assert (video.min_pixels, video.max_pixels, video.fps, video.min_frames) == (1024, 4096, 4, 2)

    nested = {"image_processor": _settings(merge_size=1), "video_processor": _settings(max_frames=9)}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert media.read_image_config(tmp_path).merge_size == 1
    assert media.read_video_config(tmp_path).max_frames == 9


@pytest.mark.parametrize("nested", [False, True])
def test_save_keeps_files_and_writes_changed_settings(tiny_folder, tmp_path, nested):
    source = shutil.copytree(tiny_folder, tmp_path / "source")
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"image_processor": _settings()} if nested else _settings(unknown_field=1)
    (source / name).write_text(json.dumps(content))
    processor = load_processor(source)
    processor.save(tmp_path / "same")
    assert (tmp_path / "same" / name).read_bytes() == (source / name).read_bytes()
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "same" / file).read_bytes() == (source / file).read_bytes()

    processor.image_config = media.ImageConfig(patch_size=4)
    processor.video_config = media.VideoConfig(fps=5)
    processor.save(tmp_path / "same")  # over the older files
    again = load_processor(tmp_path / "same")
    assert (again.image_config, again.video_config) == (processor.image_config, processor.video_config)


FRAME, CLIP = _picture(64, 64), _clip(4, 64, 64)
IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>a"
VIDEO_TEXT = "<|vision_start|><|video_pad|><|vision_end|>a"
META = {"fps": 4.0}


@pytest.mark.parametrize(
    ("message", "arguments"),
    {
        "1 image placeholders": dict(text=IMAGE_TEXT),
        "0 image placeholders": dict(text="a", images=[FRAME]),
        "2 video placeholders": dict(text=[VIDEO_TEXT] * 2, videos=[CLIP], video_metadata=[META]),
        "an image must be a uint8": dict(text=IMAGE_TEXT, images=[FRAME / 255]),
        "a video must be a uint8": dict(text=VIDEO_TEXT, videos=[FRAME], video_metadata=[META]),
        "not uint8 \\[4, 64, 64, 1\\]": dict(text=VIDEO_TEXT, videos=[CLIP[..., :1]], video_metadata=[META]),
        "at least 2 frames": dict(text=VIDEO_TEXT, videos=[CLIP[:1]], video_metadata=[META]),
        "not uint8 \\[0, 64, 64, 3\\]": dict(text=VIDEO_TEXT, videos=[CLIP[:0]], video_metadata=[META]),
        "200 times": dict(text=IMAGE_TEXT, images=[np.zeros((2, 402, 3), np.uint8)]),
        "fps must be positive": dict(text=VIDEO_TEXT, videos=[CLIP], video_metadata=[{"fps": 0}]),
        "total_num_frames is 9": dict(
            text=VIDEO_TEXT, videos=[CLIP], video_metadata=[{"fps": 4.0, "total_num_frames": 9}]
        ),
        "names 2 frames": dict(
            text=VIDEO_TEXT, videos=[CLIP], video_metadata=[{"fps": 4.0, "frames_indices": [0, 1]}]
        ),
        "1 entries for 0 videos": dict(text="a", video_metadata=[META]),
        "text is empty": dict(text=[]),
        "padding_side": dict(text="a", padding_side="middle"),
    }.items(),
)
def test_mistakes_are_named(small, message, arguments):
    with pytest.raises(UserError, match=message):
        small(**arguments)


def test_missing_fps_is_said(small):
    with pytest.warns(UserWarning, match="24 frames per second"):
        small(VIDEO_TEXT, videos=[CLIP])


def test_broken_folders_are_named(tiny_folder, tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_processor(tmp_path / "nowhere")
    with pytest.raises(UserError, match="no tokenizer.json"):
        load_processor(tmp_path)
    broken = shutil.copytree(tiny_folder, tmp_path / "broken")
    (broken / "preprocessor_config.json").write_text("{")
    with pytest.raises(UserError, match="preprocessor_config.json is not valid JSON"):
        load_processor(broken)
    (broken / "preprocessor_config.json").write_text('{"do_rescale": false}')
    with pytest.raises(UserError, match="do_rescale is false"):
        load_processor(broken)
    (broken / "preprocessor_config.json").unlink()
    (broken / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        load_processor(broken).apply_chat_template(_user())
    content = (broken / "tokenizer.json").read_text().replace("<|video_pad|>", "<|other_pad|>")
    (broken / "tokenizer.json").write_text(content)
    with pytest.raises(UserError, match="has no <.video_pad.>"):
        load_processor(broken)
    (broken / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        load_processor(broken)
