"""Generation: key/value caches and samplers."""
