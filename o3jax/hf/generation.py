"""generation_config.json of a model folder: what changes a greedy text is done, or refused in one sentence.

The keys are those of transformers' GenerationConfig, each in one of three tables.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from o3jax.errors import UserError
from o3jax.fields import Section, folder_json

GENERATION_CONFIG = "generation_config.json"
DONE = ("eos_token_id", "pad_token_id", "repetition_penalty")
# Keys that would change a greedy text, with the values that leave it as it is.
OFF: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences"), (1,)),
    **dict.fromkeys(("encoder_repetition_penalty", "guidance_scale"), (1,)),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), (0,)),
    **dict.fromkeys(("min_length", "min_new_tokens", "penalty_alpha"), (0,)),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "stop_strings"), ([],)),
    **dict.fromkeys(("sequence_bias", "forced_bos_token_id", "forced_eos_token_id"), ()),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "dola_layers"), ()),
    **dict.fromkeys(("constraints", "force_words_ids", "max_time"), ()),
    "token_healing": (False,),
}
# Of sampling: greedy decoding does not read them, but nonsense in them is a damaged file.
_SAMPLING = {
    "do_sample": Section.boolean,
    "top_k": lambda section, key: section.integer(key, 0),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"), Section.fraction),
}
# Without effect on a greedy text: sampling, beams, speed, what else is returned, and the length, which every
# call names. (temperature may be 0.)
WITHOUT_EFFECT = (
    *_SAMPLING,
    *("temperature", "top_h", "renormalize_logits", "remove_invalid_values", "max_length", "max_new_tokens"),
    *("length_penalty", "early_stopping", "diversity_penalty", "low_memory", "bos_token_id"),
    *("decoder_start_token_id", "use_cache", "cache_implementation", "cache_config", "max_cache_len"),
    *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
    *("return_dict_in_generate", "return_legacy_cache", "transformers_version", "_from_model_config"),
    *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
    *("assistant_confidence_threshold", "assistant_early_exit", "assistant_lookbehind"),
    *("assistant_ensemble_weight", "target_lookbehind", "prompt_lookup_num_tokens"),
    *("max_matching_ngram_size", "speculation_type", "use_mtp", "compile_config", "disable_compile"),
    *("continuous_batching_config", "prefill_chunk_size", "generation_kwargs"),
)


@dataclasses.dataclass(frozen=True)
class Generation:
    """How a model's folder wants a greedy text to be made."""

    eos_ids: tuple[int, ...]  # the tokens that end a text; none where no file names one
    pad_id: int  # fills up after them; the first end token where no file names one
    repetition_penalty: float  # of every token that stands before, see `o3jax.generate.sampler.Ending`


def read_generation(folder: Path) -> Generation:
    """Returns how a model's folder wants a greedy text to be made.

    As in transformers: generation_config.json names the tokens first, then config.json, then its text_config.

    Raises:
        UserError: if a value is malformed, a token is not in the embedding, or something is not done.
    """
    section = Section(folder_json(folder, GENERATION_CONFIG) or {}, str(folder / GENERATION_CONFIG))
    top = Section(folder_json(folder, "config.json") or {}, str(folder / "config.json"))
    sources = [section, top]
    if top.has("text_config"):
        sources.append(top.section("text_config"))
    for key, neutral in OFF.items():
        if section.has(key) and section.values[key] not in neutral:
            raise section.bad(key, "is set, but is not supported: remove it")
    for key, read in _SAMPLING.items():
        if section.has(key):
            read(section, key)
    penalty = section.number("repetition_penalty") if section.has("repetition_penalty") else 1.0
    rows = sources[-1].integer("vocab_size") if sources[-1].has("vocab_size") else None

    def first(key: str) -> tuple[int, ...]:
        source = next((one for one in sources if one.has(key)), None)
        if source is None:
            return ()
        single = not isinstance(source.values[key], list)
        ids = (source.integer(key, 0),) if single else source.integers(key)
        if rows is not None and ids and max(ids) >= rows:
            raise source.bad(key, f"is {max(ids)}, but the embedding has {rows} rows")
        return ids

    ends, pad = first("eos_token_id"), first("pad_token_id")
    if len(pad) > 1:
        raise UserError(f"{section.file}: pad_token_id names {len(pad)} tokens: name one")
    return Generation(ends, (pad or ends or (0,))[0], penalty)
