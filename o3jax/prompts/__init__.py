"""Prompts and answers: chat templates, the answer grammar, coordinate spaces, the processor, tokenizers."""
