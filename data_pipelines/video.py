"""The video reader, under the name that data pipelines use."""

from o3jax.video import Clip, VideoError, read_video

__all__ = ["Clip", "VideoError", "read_video"]
