"""What each part of the evidence is worth: o3-tiny's second half at a small, equal budget.

Every cell starts from the same text-only model and sees the same clips in the same order (per seed). The
cells differ from `full` in one thing each; `python -m experiments.ablation` runs and compares them.

    text          the text alone: nothing of the loss goes to the evidence
    no_encoder    dense features go to the heads as the tower gives them, without temporal attention
    weight_20/_60 0.2 or 0.6 of the loss for the evidence, in place of 0.4
    prompt        the text is written from the modules' proposals (feedback)
"""

from ml_collections import ConfigDict

from configs import common, sft_tiny

CELLS = ("text", "no_encoder", "weight_20", "full", "weight_60", "prompt")


def get_config(arg: str = "full") -> ConfigDict:
    c = sft_tiny.get_config("evidence")
    c.model_name_or_path = "runs/questions_tiny/model"
    c.questions_per_row = 4
    c.evidence_shape = common.evidence_shape(
        patches=36, questions=4, question_length=32, mentions=2, boxes=1, intervals=1
    )
    c.row_length = 832
    c.per_device_train_batch_size = 3
    c.max_steps = 400
    c.warmup_steps = 30
    match arg:
        case "full":
            pass
        case "text":
            c.evidence = None
        case "no_encoder":
            c.evidence.temporal_layers = 0
        case "weight_20" | "weight_60":
            c.loss.evidence_weight = int(arg[-2:]) / 100
        case "prompt":
            c.feedback = "prompt"
        case _:
            raise ValueError(f"unknown argument '{arg}': {', '.join(CELLS)}")
    return c
