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

    if arg in ("captions", "questions"):
        captions = arg == "captions"
        c.model_name_or_path = "runs/ground_tiny/model" if captions else "runs/captions_tiny/model"
        c.questions_per_row = 3
        c.row_length = 576
        c.max_steps = 1900
        if captions:
            c.data_path = "captions:1"
            c.row_frame_pairs = 2
            c.row_length = 224
            c.per_device_train_batch_size = 16
            c.max_steps = 800
            c.lr_scheduler_type = "constant"
        return c

    c.evidence = common.evidence(hidden_size=128, num_heads=4, dense_pixels=96 * 96, proposals=2)
    c.lr_multipliers.vision = 0.0
    c.loss.update({"time_ce": 0.5, "interval_ce": 0.5, "box_l1": 2.5, "box_giou": 1.0})
    if arg == "evidence":
        c.seed = 1
        c.model_name_or_path = "runs/questions_tiny/model"
        c.questions_per_row = 5
        c.row_length = 768
        c.max_steps = 1400
        c.lr_multipliers.text = 0.7
    elif arg == "feedback":
        c.seed = 2
        c.model_name_or_path = "runs/evidence_tiny/model"
        c.feedback = "prompt"
        c.box_frames = "pointed"
        c.questions_per_row = 4
        c.row_frame_pairs = 16  # those of the video, and a frame for each question's mention
        c.row_length = 832
        c.max_steps = 950
        c.warmup_steps = 30
        c.learning_rate = 1.2e-3
    elif arg == "levels":
        c.seed = 4
        c.model_name_or_path = "o3-tiny"
        c.data_path = "levels:4"
        c.feedback = "prompt"
        c.box_frames = "pointed"
        c.questions_per_row = 4
        c.row_frame_pairs = 20  # a question that counts has up to four mentions
        c.row_length = 1088
        c.max_steps = 4000
        c.learning_rate = 6e-4
        c.save_every = 50
        c.log_every = 10
    else:
        raise ValueError(f"unknown argument '{arg}': captions, questions, evidence, feedback or levels")
    c.evidence_shape = common.evidence_shape(
        patches=36, questions=c.questions_per_row, question_length=32, mentions=2, boxes=1, intervals=1
    )
    if arg == "levels":
        c.evidence_shape.update({"frame_pairs": 100, "question_length": 64, "mentions": 4, "intervals": 4})
    return c
