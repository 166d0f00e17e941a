"""How far to trust an answer: what its confidence means to a person."""
