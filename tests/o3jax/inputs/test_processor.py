"""The processor against transformers' own Qwen3-VL processor, against brute force and hand-worked values."""

import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from o3jax.errors import UserError
from o3jax.inputs import image as media
from o3jax.inputs.processor import load_processor
from tests.support.paths import ROOT, SHARED

REAL_TOKENIZER = SHARED / "data" / "qwen3_vl_tokenizer"


@pytest.fixture(scope="module", params=["tiny", "real"])
def pair(request, tmp_path_factory):
    """Our processor and transformers' own, from the folder that ours wrote."""
    if request.param == "real" and not REAL_TOKENIZER.is_dir():
        pytest.skip("the real tokenizer is not on this machine")
    source = REAL_TOKENIZER if request.param == "real" else request.getfixturevalue("tiny_folder")
    folder = tmp_path_factory.mktemp("saved")
    load_processor(source).save(folder)
    return load_processor(folder), _hugging_face(folder)


def _hugging_face(folder: Path):
    """transformers' processor without torchvision: its few functions are put in from torch."""
    import torch
    from transformers import AutoTokenizer, image_processing_backends, video_processing_utils
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
    from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    def resize(frames, size, interpolation, antialias):
        flat = frames.flatten(0, -4)
        flat = torch.nn.functional.interpolate(flat, size, mode=interpolation, antialias=antialias)
        return flat.unflatten(0, frames.shape[:-3])

    def normalize(frames, mean, std, inplace):
        return (frames - mean[:, None, None]) / std[:, None, None]

    functions = types.SimpleNamespace(
        resize=resize,
        normalize=normalize,
        grayscale_to_rgb=lambda frames: frames,
        InterpolationMode=types.SimpleNamespace(LANCZOS="lanczos"),
    )

    class Processor(Qwen3VLProcessor):
        def check_argument_for_proper_class(self, argument_name, argument):
            return type(argument)

    for module in (image_processing_backends, video_processing_utils):
        module.tvF = functions
    image_processing_backends.pil_torch_interpolation_mapping = {3: "bicubic"}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Processor(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(folder),
        tokenizer=tokenizer,
        video_processor=Qwen3VLVideoProcessor.from_pretrained(folder),
        chat_template=tokenizer.chat_template,
    )


def _picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth coloured picture with edges, as a camera would give."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    waves = [np.sin(9 * x * (c + 1) + seed) + np.cos(7 * y + c + seed) for c in range(3)]
    frame = 64 + 48 * np.stack(waves, -1)
    frame[(x - 0.4) ** 2 + (y - 0.3) ** 2 < 0.02] = (250, 10, 90)
    return frame.clip(0, 255).astype(np.uint8)


def _clip(frames: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.stack([_picture(height, width, seed + i) for i in range(frames)])


def _user(*kinds: str, text: str = "When does the red circle appear? 红色") -> list[dict]:
    return [{"role": "user", "content": [*({"type": k} for k in kinds), {"type": "text", "text": text}]}]


CASES = {
    "text": ([_user(), _user(text="hi")], [], []),
    "images": ([_user("image", "image"), _user("image")], [(40, 50), (700, 300), (32, 32)], []),
    "videos": (
        [_user("video"), _user("video", text="x")],
        [],
        [((25, 64, 96), {"fps": 10.0}), ((9, 200, 120), {"fps": 30.0})],
    ),
    "tiny frames and an odd count": (
        [_user("video", "video")],
        [],
        [((3, 20, 45), {"fps": 25.0}), ((5, 31, 64), {"fps": 2.0})],
    ),
    "mixed": (
        [_user("image", "video"), _user(), _user("video", "image", text="a")],
        [(33, 65), (128, 128)],
        [((30, 128, 128), {"fps": 6.0}), ((2, 64, 64), {"fps": 1.0})],
    ),
}


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equals_transformers(pair, case, outer):
    ours, theirs = pair
    chats, image_sizes, video_shapes = CASES[case]
    images = [_picture(*size, seed=i) for i, size in enumerate(image_sizes)]
    videos = [_clip(*shape, seed=i) for i, (shape, _) in enumerate(video_shapes)]
    metadata = [{**m, "total_num_frames": shape[0]} for shape, m in video_shapes]

    texts = [ours.apply_chat_template(chat) for chat in chats]
    assert texts == [
        theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats
    ]
    # This transformers keeps what surrounds a video placeholder; older ones replaced it, which is the
    # same as not writing it.
    triple = "<|vision_start|><|video_pad|><|vision_end|>"
    their_texts = texts if outer else [t.replace(triple, "<|video_pad|>") for t in texts]

    for side in ("left", "right"):
        got = ours(texts, images, videos, metadata, outer_vision_pair=outer, padding_side=side)
        want = theirs(
            text=their_texts,
            images=images or None,
            videos=videos or None,
            video_metadata=metadata or None,
            padding=True,
            padding_side=side,
            return_tensors="np",
        )
        assert sorted(got) == sorted(want)
        for key in got:
            assert got[key].shape == want[key].shape, key
            if not key.startswith("pixel"):
                np.testing.assert_array_equal(got[key], want[key], err_msg=key)
    for key in ("pixel_values", "pixel_values_videos"):
        if key in got:
            levels = np.abs(got[key] - want[key]) * 127.5
            # Images go through Pillow in both; torch's own bicubic rounds differently.
            assert levels.max() <= (0.01 if key == "pixel_values" else 2.01)
            assert levels.mean() < 0.3


def test_presampled_frames_equal_transformers(pair):
    ours, theirs = pair
    frames = _clip(5, 64, 64)
    text = [ours.apply_chat_template(_user("video"))]
    for indices in ([0, 1, 2, 3, 10], [4, 9, 30, 31, 77]):
        got = ours(
            text,
            videos=[frames],
            video_metadata=[{"fps": 2.0, "frames_indices": indices}],
            outer_vision_pair=True,
        )
        want = theirs(
            text=text,
            videos=[frames],
            video_metadata=[{"fps": 2.0, "frames_indices": list(indices), "total_num_frames": 99}],
            do_sample_frames=False,
            return_tensors="np",
        )
        np.testing.assert_array_equal(got["input_ids"], want["input_ids"])
        assert got["video_grid_thw"].tolist() == want["video_grid_thw"].tolist() == [[3, 4, 4]]


def test_times_are_pair_means_printed_half_even(small):
    clip = small.read_video(_clip(5, 32, 32), {"fps": 2.0, "frames_indices": [0, 1, 2, 3, 10]})
    assert clip.times_s == (0.25, 1.25, 5.0)
    [text] = small.expand(["<|vision_start|><|video_pad|><|vision_end|>?"], videos=[clip])
    pads = "<|vision_start|><|video_pad|><|vision_end|>"
    assert text == f"<0.2 seconds>{pads}<1.2 seconds>{pads}<5.0 seconds>{pads}?"
    # Five frames count as round(2.5) * 2 = 4, which are 4096 pixels: just enough not to be enlarged.
    assert clip.grid == (3, 2, 2)


# Sizes, sampling, patches


def test_sizes_by_hand():
    video, image = media.VideoConfig(), media.ImageConfig()
    assert media.image_size(48, 80, image) == (224, 352)  # enlarged: 48 * sqrt(65536 / 3840) = 198.3, 330.5
    assert media.image_size(1080, 1920, image) == (1088, 1920)
    assert media.video_size(768, 1080, 1920, video) == (128, 224)
    assert media.video_size(4, 16, 16, video) == (32, 32)


def test_round_is_half_to_even():
    wide = media.ImageConfig(min_pixels=1, max_pixels=10**9)
    assert media.image_size(80, 112, wide) == (64, 128)  # 2.5 -> 2, 3.5 -> 4


SIDES = st.integers(1, 3000)


@settings(max_examples=150, deadline=None)
@given(
    frames=st.integers(2, 30) | st.integers(2, 800),
    height=SIDES,
    width=SIDES,
    cap=st.booleans(),
    least=st.sampled_from([4096, 10**6]),
)
@example(frames=5, height=70, width=60, cap=False, least=10**6)  # an odd count that is enlarged
def test_sizes_equal_transformers(frames, height, width, cap, least):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as image_rule
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as video_rule

    def both(ours, theirs):
        try:
            want = theirs()
        except ValueError:
            with pytest.raises(UserError, match="times the other"):
                ours()
        else:
            assert ours() == want

    image, video = media.ImageConfig(), media.VideoConfig(cap_pixels_per_frame=cap, min_pixels=least)
    both(
        lambda: media.image_size(height, width, image),
        lambda: image_rule(height, width, 32, min_pixels=65536, max_pixels=16777216),
    )
    most = 25165824
    if cap:
        most = frames * max(min(768 * 32 * 32, most // frames), int(least * 1.05))
    both(
        lambda: media.video_size(frames, height, width, video),
        lambda: video_rule(frames, height, width, 2, 32, min_pixels=least, max_pixels=most),
    )


@settings(max_examples=150, deadline=None)
@given(total=st.integers(1, 200_000), fps=st.floats(0.5, 240))
def test_sampling_by_the_published_rule(tiny_rule, total, fps):
    count = int(total / fps * 2)
    count = min(max(count, 4), 768, total)
    want = [round(i * (total - 1) / (count - 1)) if count > 1 else 0 for i in range(count)]
    got = tiny_rule(total, fps)
    assert len(got) == count and got[0] == 0 and got[-1] == (total - 1 if count > 1 else 0)
    assert np.abs(got - want).max() <= 1  # linspace may end a hair beside a tie


@pytest.fixture(scope="module")
def tiny_rule(small):
    return small.sample_indices


def test_sampling_by_hand(small):
    assert small.sample_indices(250, 25.0).tolist()[:4] == [0, 13, 26, 39]  # 20 frames, 249 / 19 apart
    assert small.sample_indices(6, 30.0).tolist() == [0, 2, 3, 5]  # at least four; 1.67, 3.33
    assert small.sample_indices(3, 30.0).tolist() == [0, 1, 2]
    assert small.sample_indices(11, 10.0).tolist() == [0, 3, 7, 10]
    assert len(small.sample_indices(100_000, 1.0)) == 768


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_patch_rows_by_brute_force(frames):
    config = media.ImageConfig(patch_size=4, merge_size=2)
    video = np.random.default_rng(0).integers(0, 256, (frames, 16, 24, 3)).astype(np.uint8)
    rows = []
    for t in range(0, frames, 2):
        pair = [video[t], video[min(t + 1, frames - 1)]]
        for block_y in range(2):
            for block_x in range(3):
                for y in range(2):
                    for x in range(2):
                        top, left = 4 * (2 * block_y + y), 4 * (2 * block_x + x)
                        patch = [f[top : top + 4, left : left + 4, c] for c in range(3) for f in pair]
                        rows.append(np.concatenate([p.ravel() for p in patch]))
    np.testing.assert_array_equal(media.patchify(video, config), np.stack(rows))


def test_normalize_is_per_channel():
    config = media.ImageConfig(
        patch_size=1, temporal_patch_size=1, image_mean=(0.5, 0, 1), image_std=(0.5, 1, 2)
    )
    patches = np.array([[0, 255, 255], [255, 51, 0]], np.uint8)
    np.testing.assert_allclose(media.normalize(patches, config), [[-1, 1, 0], [1, 0.2, -0.5]], atol=1e-6)


def test_resize_of_a_fitting_clip_copies_nothing():
    clip = _clip(2, 32, 64)
    assert media.resize_video(clip, (32, 64)) is clip
    assert media.resize_image(clip[0], (32, 64)).base is clip


@pytest.mark.parametrize("size", [(192, 128), (320, 96), (64, 64)])
def test_resize_of_noise_is_torchs_up_to_rounding(size):
    import torch

    noise = np.random.default_rng(0).integers(0, 256, (1, 200, 120, 3)).astype(np.uint8)
    planes = torch.from_numpy(noise).permute(0, 3, 1, 2)
    want = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    got = media.resize_video(noise, size).astype(int)
    assert np.abs(got - want.permute(0, 2, 3, 1).numpy()).max() <= 3


# Folders


def test_runs_without_torch_and_imports_no_heavy_library(tiny_folder):
    code = """
import sys
import o3jax.prompts.grammar, o3jax.inputs.image, o3jax.inputs.processor, o3jax.prompts.templates
import o3jax.prompts.tiny_tokenizer, o3jax.prompts.tokenizer
assert not {"torch", "jax", "transformers"} & set(sys.modules)
sys.modules["torch"] = None  # looks as if it were not installed
import numpy as np
processor = o3jax.inputs.processor.load_processor(sys.argv[1])
del sys.modules["torch"]  # einops takes an entry as a sign that it is there
text = processor.apply_chat_template(o3jax.prompts.templates.messages("When?"))
frames = np.zeros((4, 64, 64, 3), np.uint8)
out = processor([text, "a"], videos=[frames], video_metadata=[{"fps": 4.0}])
assert out["pixel_values_videos"].shape == (32, 1536) and out["input_ids"].shape[0] == 2
assert not {"torch", "jax", "transformers"} & set(sys.modules)
"""
    command = [sys.executable, "-c", code, str(tiny_folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert not done.stderr  # nor a word about what is not installed
