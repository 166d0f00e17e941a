"""Frames of a video file at wanted times, by presentation timestamp."""

from o3jax.video.reader import Clip, VideoError, VideoInfo, probe, read_video

__all__ = ["Clip", "VideoError", "VideoInfo", "probe", "read_video"]
