"""Scenes of the synthetic world for tests."""

from data_pipelines.synthetic.scenes import Scene, make_scene, scene_seed


def scenes(level: int, count: int, questions: int | None = None, split: str = "test") -> list[Scene]:
    """Returns the first scenes of a split."""
    return [make_scene(scene_seed(split, i), level, questions) for i in range(count)]
