"""The facade: load, call, generate, answer and export, on a tiny random model with real files."""

from __future__ import annotations

import dataclasses
import json
from fractions import Fraction
from pathlib import Path

import av
import jax
import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, Qwen3VLForConditionalGeneration

import o3jax
from o3jax.errors import UserError
from o3jax.hf.generation import Generation
from o3jax.inference.respond import Response
from tests.support.numbered import draw, read_number, write_video
from tests.support.tiny import make_inputs


@pytest.fixture(scope="module")
def model(video_model):
    return o3jax.load(video_model)


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """4 s of 160 x 96 pixels at 10 frames per second."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, range(40), Fraction(1, 10))
    return path


@pytest.fixture(scope="module")
def still(tmp_path_factory) -> Path:
    """A video of one frame."""
    path = tmp_path_factory.mktemp("still") / "still.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = av.VideoFrame.from_ndarray(draw(1, 48, 64), format="rgb24")
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


# --- calls ---


def test_logits_equal_transformers_on_what_the_processor_returns(model, video_model):
    rng = np.random.default_rng(0)
    image, video = (rng.integers(0, 256, size, np.uint8) for size in ((70, 90, 3), (60, 48, 80, 3)))
    processor = o3jax.load_processor(video_model)
    vision = "<|vision_start|><|{}_pad|><|vision_end|>"
    inputs = processor(
        text=[f"Look: {vision.format('video')} and {vision.format('image')}?", "red circle"],
        images=[image],
        videos=[video],
        video_metadata=[{"fps": 25.0, "total_num_frames": 60}],
    )
    theirs = Qwen3VLForConditionalGeneration.from_pretrained(video_model, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = theirs(**{key: torch.from_numpy(value) for key, value in inputs.items()}).logits.numpy()
    got = np.asarray(model(**inputs).logits)
    assert got.shape == expected.shape and expected.std() > 0.2
    valid = inputs["attention_mask"].astype(bool)
    assert np.abs(got - expected)[valid].max() <= 1e-4


def test_generate_returns_what_is_new_and_stops_at_the_end(model):
    inputs = {"input_ids": np.array([[5, 6, 7], [8, 9, 10]])}
    free = o3jax.api.Model(model.backbone, model.folder, model.settings, Generation((), 7, 1.0)).generate(
        max_new_tokens=6, **inputs
    )
    assert free.shape == (2, 6)
    first = next(i for i in range(6) if free[0, i] not in free[1])
    ends = (int(free[0, first]), int(free[1, 5]))
    stopped = o3jax.api.Model(
        model.backbone, model.folder, model.settings, Generation(ends, 7, 1.0)
    ).generate(max_new_tokens=6, **inputs)
    count = list(free[1]).index(ends[1]) + 1
    assert stopped.shape == (2, max(count, first + 1))
    assert (stopped[0, first + 1 :] == 7).all() and (stopped[1, :count] == free[1, :count]).all()


def test_wrong_inputs_are_named(model):
    ids = np.array([[5, 6, 7]])
    with pytest.raises(UserError, match="unknown input 'pixels'"):
        model(input_ids=ids, pixels=ids)
    with pytest.raises(UserError, match="input_ids is missing"):
        model(attention_mask=ids)
    with pytest.raises(UserError, match="max_new_tokens must be at least 1"):
        model.generate(input_ids=ids, max_new_tokens=0)


# --- files ---


def test_an_exported_model_is_the_model(model, video_model, tmp_path):
    inputs = {"input_ids": np.array([[5, 6, 7]])}
    before = np.asarray(model(**inputs).logits)
    o3jax.export_hf(model, tmp_path / "out")
    again = o3jax.load(tmp_path / "out")
    leaves = (jax.tree_util.tree_leaves_with_path(m.backbone) for m in (model, again))
    for (path, leaf), (same_path, same) in zip(*leaves, strict=True):
        assert path == same_path and leaf.dtype == same.dtype
        np.testing.assert_array_equal(leaf, same, err_msg=jax.tree_util.keystr(path))
    assert again.config == model.config and again.settings == model.settings
    for path in video_model.iterdir():
        if path.name == "o3_config.json":  # written with every field
            written = json.loads((tmp_path / "out" / path.name).read_text())
            asked = {"prompt_style": "plain", "fps": 25.0, "box_step": 1, "clip_s": 60.0}
            assert written == asked | {"whole_s": 120.0, "clock": "video", "exact_names": False}
        elif path.suffix != ".safetensors":
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    np.testing.assert_array_equal(model(**inputs).logits, before)  # export leaves the model as it was


def test_transformers_loads_what_was_exported(model, tmp_path):
    o3jax.export_hf(model, tmp_path / "out")
    config = AutoConfig.from_pretrained(tmp_path / "out")
    assert config.model_type == "qwen3_vl" and config.text_config.num_hidden_layers == 2
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "<obj>red circle</obj><box>[10,20,30,40]</box>at<t>1.2</t>s 红色圆形"
    assert tokenizer(text)["input_ids"] == model.processor.tokenizer(text)["input_ids"]
    generation = GenerationConfig.from_pretrained(tmp_path / "out")
    assert generation.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])


def test_bare_weights_can_be_loaded_and_exported(tiny, tmp_path):
    """A folder without a tokenizer, whose only end token is in config.json."""
    reference = tiny("dense")
    (reference.folder / "generation_config.json").unlink(missing_ok=True)
    config = json.loads((reference.folder / "config.json").read_text())
    source = tmp_path / "source"
    source.mkdir()
    config["text_config"] |= {"eos_token_id": 9, "pad_token_id": 4}
    (source / "config.json").write_text(json.dumps(config))
    (source / "model.safetensors").symlink_to(reference.folder / "model.safetensors")
    model = o3jax.load(source)
    inputs = make_inputs([[6, (4, 4), 2]])
    new = model.generate(max_new_tokens=4, **inputs)
    o3jax.export_hf(model, tmp_path / "out")
    again = o3jax.load(tmp_path / "out")
    np.testing.assert_array_equal(again.generate(max_new_tokens=4, **inputs), new)
    written = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert written == {"do_sample": False, "eos_token_id": [9], "pad_token_id": 4}


def test_a_model_that_is_not_there():
    with pytest.raises(UserError, match="'o9-huge' is not a folder, nor an embedded model"):
        o3jax.load("o9-huge")


# --- answers ---


def test_an_answer_about_a_real_video_is_consistent(model, film):
    answer = model.answer(film, "What happens?", max_new_tokens=40)
    assert answer.video["size"] == [160, 96] and answer.video["status"] == "complete"
    assert answer.video["duration_s"] == pytest.approx(4.0) and answer.video["fps"] == 25
    assert 0 < answer.confidence <= 1 and answer.language == "en"
    assert answer.model == "model" and answer.video["path"] == str(film)
    assert json.loads(answer.to_json())["confidence_kind"] == "mean token probability"
    again = model.answer(film, "What happens?", max_new_tokens=40)
    assert again == answer


def speak(monkeypatch, text, probabilities=None, end=True):
    """Makes the model say `text`; returns the tokens, and what it was asked with."""
    asked = {}

    def say(model, processor, requests, *given, **options):
        (request,) = requests
        asked.update(
            processor(text=request.prompt, videos=[request.frames], video_metadata=[request.metadata])
        )
        tokens = processor.tokenizer(text + "<|im_end|>" * end)["input_ids"]
        p = np.full(len(tokens), 0.5) if probabilities is None else probabilities(tokens)
        asked["tokens"], asked["p"] = tokens, p
        return [Response(np.array(tokens), p, processor.decode(tokens))]

    monkeypatch.setattr(o3jax.api, "respond", say)
    return asked


SAID = (
    "<think>A <obj>red car</obj><box>[100,200,300,400]</box>at<t>1.2</t>s passes "
    "<obj>two dogs</obj><box>[0,0,500,500]</box><box>[505,5,1000,1000]</box>at<t>2.0</t>s, then "
    "<obj>nobody</obj>at<t>3.9</t>s and <obj>a ghost</obj><box>[1,2,3,4]</box>at<t>99.0</t>s"
    "</think>\n<answer>From <t>0.5</t>s to <t>2.0</t>s</answer>"
)


def test_what_the_text_claims_is_the_evidence(model, film, monkeypatch):
    rng = np.random.default_rng(0)
    asked = speak(monkeypatch, SAID, lambda tokens: rng.uniform(0.1, 1.0, len(tokens)))
    answer = model.answer(film, "When does the red car pass?")
    car, dog, other, nobody = answer.evidence
    # 160 x 96 pixels: x is 0.16 and y 0.096 pixels per mille.
    assert (car.object, car.time_s, car.frame, car.box_px) == ("red car", 1.2, 30, (16, 19, 48, 38))
    assert car.box == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert (dog.object, dog.time_s, dog.frame, dog.box_px) == ("two dogs", 2.0, 50, (0, 0, 80, 48))
    assert (other.object, other.frame, other.box_px) == ("two dogs", 50, (81, 0, 160, 96))
    assert (nobody.time_s, nobody.frame, nobody.box, nobody.box_px) == (3.9, 98, None, None)
    assert answer.intervals == ((0.5, 2.0),)
    assert answer.text == "From 0.5 s to 2.0 s"
    assert answer.raw == SAID and answer.reasoning == SAID[7 : SAID.index("</think>")]
    assert answer.video["notes"] == ["1 claims lie after the end of the video and were left out"]

    offsets = model.processor.tokenizer.backend_tokenizer.encode(SAID).offsets
    dogs = ("<obj>two", "2.0</t>s")
    claims = (("<obj>red", "1.2</t>s"), dogs, dogs, ("<obj>nob", "3.9</t>s"))
    for item, (opening, closing) in zip(answer.evidence, claims, strict=True):
        start, end = SAID.index(opening), SAID.index(closing) + len(closing)
        inside = [p for p, (a, b) in zip(asked["p"], offsets, strict=False) if a < end and b > start]
        assert item.confidence == pytest.approx(np.mean(inside))
    assert answer.confidence == pytest.approx(np.mean(asked["p"]))


def test_an_interval_that_is_said_twice_is_one(model, film, monkeypatch):
    first, second = "From <t>0.5</t>s to <t>2.0</t>s", "from <t>1.0</t>s to <t>2.0</t>s"
    speak(monkeypatch, f"<think>{first}, {second}.</think><answer>{first}</answer>")
    assert model.answer(film, "When?").intervals == ((0.5, 2.0), (1.0, 2.0))


@pytest.mark.parametrize("end", ["<think>\\n", "<think>\\n\\n</think>\\n\\n"])
def test_reasoning_that_the_prompt_has_opened(model, film, monkeypatch, end):
    """Whether the model says the tag again or not, answer, reasoning and confidences are those of `SAID`."""
    asked = speak(monkeypatch, SAID)
    wanted = model.answer(film, "When does the red car pass?")
    last = "'<|im_start|>assistant\\n'"
    template = model.processor.chat_template
    assert last in template
    monkeypatch.setattr(model.processor, "chat_template", template.replace(last, f"{last[:-1]}{end}'"))
    opened = SAID.removeprefix("<think>")
    bare = opened.replace("</think>", "") if "</think>" in end else opened
    for said in (SAID, opened, bare):
        tokens = speak(monkeypatch, said, lambda tokens: 0.5 + np.arange(len(tokens)) % 7 / 20)
        answer = model.answer(film, "When does the red car pass?")
        assert model.processor.decode(tokens["input_ids"][0], skip_special_tokens=False).endswith(
            "assistant\n" + end.replace("\\n", "\n")
        )
        assert (answer.text, answer.intervals, answer.raw) == (wanted.text, wanted.intervals, said)
        assert answer.reasoning.strip() == wanted.reasoning
        places = [(e.object, e.time_s, e.boxes) for e in answer.evidence]
        assert places == [(e.object, e.time_s, e.boxes) for e in wanted.evidence]
        offsets = model.processor.tokenizer.backend_tokenizer.encode(said).offsets
        car = said.index("<obj>red"), said.index("1.2</t>s") + len("1.2</t>s")
        inside = [v for v, (a, b) in zip(tokens["p"], offsets, strict=False) if a < car[1] and b > car[0]]
        assert answer.evidence[0].confidence == pytest.approx(np.mean(inside))
    assert asked["tokens"]


def test_the_prompt_is_the_question_about_the_sampled_frames(model, film, monkeypatch):
    asked = speak(monkeypatch, "<answer>x</answer>")
    model.answer(film, "When?")
    text = model.processor.decode(asked["input_ids"][0], skip_special_tokens=False)
    # One frame per second at most: 0 s, 1.32 s, 2.64 s and 3.96 s, in two pairs.
    assert asked["video_grid_thw"].tolist() == [[2, *asked["video_grid_thw"][0, 1:]]]
    assert text.startswith("<|im_start|>user\n<0.7 seconds><|vision_start|><|video_pad|>")
    assert "<|vision_end|><3.3 seconds><|vision_start|>" in text
    assert text.endswith("<|vision_end|>When?<|im_end|>\n<|im_start|>assistant\n")


def test_frames_are_numbered_at_the_wanted_rate(model, film, monkeypatch):
    speak(monkeypatch, SAID)
    answer = model.answer(film, "When does the red car pass?", fps=30)
    assert [item.frame for item in answer.evidence] == [36, 60, 60, 117]
    assert answer.video["fps"] == 30


def test_a_part_of_a_video_keeps_the_times_of_the_whole(model, film):
    """Ten frames per second, each with its number in it: what is shown is read from the pictures."""
    request, clip = model.request(film, "When?", fps=10, start_s=1.0, end_s=3.0)
    numbers = [read_number(frame) for frame in request.frames]
    assert numbers == request.metadata["frames_indices"].tolist() == [10, 29]  # one per second, ends included
    assert clip.times_s.tolist() == [1.0, 2.9]
    request, _ = model.request(film, "When?", fps=10, max_frames=2)
    assert [read_number(frame) for frame in request.frames] == [0, 39]
    for wrong in ({"start_s": 4.0}, {"start_s": 2.0, "end_s": 1.0}, {"max_frames": 0}, {"start_s": -1.0}):
        with pytest.raises(UserError, match=next(iter(reversed(wrong)))):
            model.request(film, "When?", **wrong)


def test_chinese_questions_get_chinese_forms(model, film, monkeypatch):
    claim = "<obj>红色圆形</obj><box>[0,0,100,100]</box>at<t>0.5</t>s"
    speak(monkeypatch, f"<think>{claim}</think><answer>从<t>0.5</t>s到<t>2.0</t>s</answer>")
    answer = model.answer(film, "红色圆形什么时候出现?")
    assert answer.language == "zh" and answer.text == "从0.5秒到2.0秒" and answer.intervals == ((0.5, 2.0),)
    assert answer.evidence[0].object == "红色圆形" and answer.evidence[0].confidence == pytest.approx(0.5)


def test_a_text_that_was_cut_off_says_so(model, film, monkeypatch):
    asked = speak(monkeypatch, "<think>and then", end=False)
    answer = model.answer(film, "When?")
    assert answer.video["notes"] == [f"the text was cut off after {len(asked['tokens'])} tokens"]
    assert answer.evidence == () and answer.text == "<think>and then".removeprefix("<think>")
    assert answer.reasons == (*answer.video["notes"], "the response gives no answer") and not answer.reasoning


def test_a_loop_is_not_sure_of_itself(model, film, monkeypatch):
    """Neither its text nor what it claims again and again is shown whole."""
    speak(monkeypatch, "<think>" + 60 * "<obj>car</obj><box>[1,2,30,40]</box>at<t>1.0</t>s; ", end=False)
    monkeypatch.setattr("o3jax.api.respond", _sure(o3jax.api.respond))
    answer = model.answer(film, "汽车什么时候出现?")
    assert answer.confidence == pytest.approx(0.59) and answer.label == "low" and answer.needs_review
    assert answer.reasons[1:] == ("生成的文本中没有答案", "生成的文本不断重复") and len(answer.evidence) == 1
    assert answer.text == "car (1.0秒); car (1.0秒); …" and answer.raw.count("<obj>") == 60
    assert answer.to_dict()["reasons"] == list(answer.reasons) and answer.to_dict()["needs_review"] is True


def _sure(respond):
    """Returns `respond` with tokens that are all probable."""

    def say(*args, **options):
        return [
            dataclasses.replace(r, probabilities=r.probabilities * 0 + 0.97)
            for r in respond(*args, **options)
        ]

    return say


def test_a_video_of_one_frame(model, still, monkeypatch):
    claim = "<obj>x</obj><box>[0,0,1000,1000]</box>at<t>0.0</t>s"
    asked = speak(monkeypatch, f"<think>{claim}</think><answer>x</answer>")
    answer = model.answer(still, "What is this?")
    assert asked["video_grid_thw"][0, 0] == 1
    assert answer.video["size"] == [64, 48] and answer.video["duration_s"] == pytest.approx(0.04)
    assert (answer.evidence[0].frame, answer.evidence[0].box_px) == (0, (0, 0, 64, 48))


@pytest.mark.parametrize("fps", [0, -1.0, float("nan"), float("inf")])
def test_a_rate_must_be_positive(model, film, fps):
    with pytest.raises(UserError, match="fps must be a positive number, at most 1000, not"):
        model.answer(film, "When?", fps=fps)


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question(model, film, question):
    with pytest.raises(UserError, match="the question is empty"):
        model.answer(film, question)
