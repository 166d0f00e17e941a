"""Frames of a video file at wanted times, by presentation timestamp."""

from o3jax.video.files import VideoError
from o3jax.video.reader import Clip, OpenVideo, VideoInfo, Wanted, probe, read_video
from o3jax.video.timeline import PRESENTED_FPS

__all__ = ["PRESENTED_FPS", "Clip", "OpenVideo", "VideoError", "VideoInfo", "Wanted", "probe", "read_video"]
