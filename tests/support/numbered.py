"""Videos of numbered frames, under the name that tests use."""

from experiments.bench.numbered import Fixture, draw, read_number, silence, write_video

__all__ = ["Fixture", "draw", "read_number", "silence", "write_video"]
