"""SFT of o3-tiny on the synthetic world, rendered while it trains (no clip comes twice).

Stages after the grounding of the tower, each from the model of the one before:

    captions   single frames and what is on them
    questions  clips with questions, the text alone
    evidence   text and evidence together, the tower frozen
    feedback   the same, and the text is written from the modules' proposals
    levels     the same for levels 1 to 4, of the long ones windows; from the model that GSPO left

    python -m experiments.sft --config=configs/sft_tiny.py:captions --workdir=runs/captions_tiny
    python -m experiments.sft --config=configs/sft_tiny.py --workdir=runs/mine \\
        --config.model_name_or_path=o3-tiny
"""

from ml_collections import ConfigDict

from configs import common


def get_config(arg: str = "feedback") -> ConfigDict:
    c = common.sft()
    c.prompt_style = "plain"
    c.box_step = 10
    c.data_path = "synthetic:1"
    c.row_frame_pairs = 12
    c.row_patches = 64
    c.per_device_train_batch_size = 4
    c.optimizer = "muon"
    c.learning_rate = 1.5e-3
    c.warmup_steps = 100
    c.weight_decay = 0.02
    c.adam_b2 = 0.99
    c.compute_dtype = "float32"
    c.remat = "none"
    c.loss_chunk = 64
    c.soften_times = 0.1
    c.soften_coordinates = 15.0
    c.log_every = 50

    if arg not in STAGES:
        raise ValueError(f"unknown argument '{arg}': {', '.join(STAGES)}")
    STAGES[arg](c)
    return c


def _captions(c: ConfigDict) -> None:
    c.model_name_or_path = "runs/ground_tiny/model"
    c.data_path = "captions:1"
    c.questions_per_row = 3
    c.row_length = 224
    c.row_frame_pairs = 2
    c.per_device_train_batch_size = 16
    c.max_steps = 800
    c.lr_scheduler_type = "constant"


def _questions(c: ConfigDict) -> None:
    c.model_name_or_path = "runs/captions_tiny/model"
    c.questions_per_row = 3
    c.row_length = 576
    c.max_steps = 1900


def _with_modules(c: ConfigDict, questions: int) -> None:
    """Sets what the stages have in common that train the evidence modules, the tower frozen."""
    c.evidence = common.evidence(hidden_size=128, num_heads=4, dense_pixels=96 * 96, proposals=2)
    c.lr_multipliers.vision = 0.0
    c.loss.update({"time_ce": 0.5, "interval_ce": 0.5, "box_l1": 2.5, "box_giou": 1.0})
    c.questions_per_row = questions
    shape = {"patches": 36, "question_length": 32, "mentions": 2, "boxes": 1, "intervals": 1}
    c.evidence_shape = common.evidence_shape(questions=questions, **shape)


def _evidence(c: ConfigDict) -> None:
    _with_modules(c, questions=5)
    c.seed = 1
    c.model_name_or_path = "runs/questions_tiny/model"
    c.row_length = 768
    c.max_steps = 1400
    c.lr_multipliers.text = 0.7


def _feedback(c: ConfigDict) -> None:
    _with_modules(c, questions=4)
    c.seed = 2
    c.model_name_or_path = "runs/evidence_tiny/model"
    c.feedback = "prompt"
    c.box_frames = "pointed"
    c.row_frame_pairs = 16  # those of the video, and a frame for each question's mention
    c.row_length = 832
    c.max_steps = 950
    c.warmup_steps = 30
    c.learning_rate = 1.2e-3


def _levels(c: ConfigDict) -> None:
    _with_modules(c, questions=4)
    c.evidence_shape.update({"frame_pairs": 100, "question_length": 64, "mentions": 4, "intervals": 4})
    c.seed = 4
    c.model_name_or_path = "o3-tiny"
    c.data_path = "levels:4"
    c.feedback = "prompt"
    c.box_frames = "pointed"
    c.row_frame_pairs = 20  # a question that counts has up to four mentions
    c.row_length = 1088
    c.max_steps = 4000
    c.learning_rate = 6e-4
    c.save_every = 50
    c.log_every = 10


STAGES = {
    "captions": _captions,
    "questions": _questions,
    "evidence": _evidence,
    "feedback": _feedback,
    "levels": _levels,
}
