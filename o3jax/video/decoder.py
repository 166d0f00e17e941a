"""One open video file: what may be opened, and the frame shown at a time that moves forward.

`o3jax.video` is the public reader; this module is its engine. What a file says about itself is often wrong:
variable-rate files name a constant rate, edit lists hide coded frames, streams start late, cut-off files
keep their full length in the header. So only the timestamps of decoded frames are trusted.

Not closed here: a decoder bug set off by hostile bits, and the time that a long file takes. Files from
strangers are read through `data_pipelines.reading.guarded`, in a process with `Limits`. Not noticed here:
flipped bits that still decode, and a cut-off MPEG-TS or live mkv, which nowhere says how long it should
have been.
"""

import bisect
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from o3jax.errors import UserError

MAX_PIXELS = 8192 * 4320  # the largest frame of 8K video; a coded frame above it is refused
MAX_TICKS = 2**60  # timestamps are 64-bit
SEEK_GAP_S = 1.0  # decoding this far ahead costs about as much as a seek

CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,flv,gif"
# These containers count their duration from zero, the others from the first timestamp.
CONTAINERS_TIMED_FROM_ZERO = ("matroska", "flv")
PLAYLIST_STARTS = (b"#extm3u", b"ffconcat", b"[playlist]", b"[reference]", b"<mpd", b"<smil", b"<asx", b"v=0")


class VideoError(UserError):
    """A video that cannot be read as asked: one sentence with the file and the reason."""


class MissingFileError(VideoError):
    """A file that is not there."""


@dataclass(frozen=True)
class Limits:
    """What one file may ask for. What its header says counts, and so does what is then found in it.

    Attributes:
      max_duration_s: seconds from its first frame to its end.
      max_pixels: of a coded frame, with its width rounded up to 64 as decoders do.
      max_frames: of the file by its header, and those decoded in one reading.
      max_bytes: size of the file.
      max_decode_s: seconds on the clock for one reading; only a guarded reader can hold to it.
      max_memory_bytes: address space of the reading process; likewise.
    """

    max_duration_s: float = 4 * 3600.0
    max_pixels: int = MAX_PIXELS
    max_frames: int = 1_000_000
    max_bytes: int = 16 * 2**30
    max_decode_s: float = 60.0
    max_memory_bytes: int = 4 * 2**30


# Of this process. One's own files may be long and large; only the pixels are limited.
_limits = Limits(max_duration_s=math.inf, max_frames=sys.maxsize, max_bytes=sys.maxsize)


def set_limits(limits: Limits) -> None:
    """Makes `limits` those of every file that this process opens from now on."""
    global _limits
    _limits = limits


def refuse_protocol(path: str) -> None:
    """VideoError for what FFmpeg would take for a URL or a protocol of its own."""
    if re.match(r"[A-Za-z][\w+.-]+(:|,,)", path):
        raise VideoError(
            f"{path} looks like a URL or protocol; only local files are read "
            "(put ./ before the name of a file that has a colon)."
        )


def find_file(path: str | os.PathLike[str]) -> Path:
    """Returns the absolute path, without links, of what exists there; VideoError if nothing does."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise VideoError(f"path must be a file name, not {path!r:.200}.") from None
    refuse_protocol(text)
    if not text:
        raise VideoError("path is empty; name a file.")
    try:
        return Path(text).resolve(strict=True)
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"{path} does not exist; check the path.") from None
    except PermissionError:
        raise VideoError(f"{path} may not be read; check its permissions.") from None
    except (OSError, RuntimeError, ValueError) as error:  # I/O errors, loops of links, NUL in the name
        raise VideoError(f"{text!r} cannot be read ({error}).") from None


def local_file(path: str | os.PathLike[str], limits: Limits | None = None) -> Path:
    """Returns the absolute path of a regular, readable file that is not a playlist, text or too large.

    FFmpeg never sees the caller's string: an absolute path cannot name a protocol. Without `limits` those of
    the process count.
    """
    resolved = find_file(path)
    try:
        found = resolved.stat()
        head = b""
        if stat.S_ISREG(found.st_mode):  # opening a pipe would wait for ever
            with resolved.open("rb") as file:
                head = file.read(512)
    except OSError as error:
        raise VideoError(f"{path} cannot be read ({error.strerror}); check its permissions.") from None
    if stat.S_ISDIR(found.st_mode):
        raise VideoError(f"{path} is a directory; name a file.")
    if not stat.S_ISREG(found.st_mode):
        raise VideoError(f"{path} is a device, pipe or socket; only regular files are read.")
    if not head:
        raise VideoError(f"{path} is empty (0 bytes).")
    if found.st_size > (most := (limits or _limits).max_bytes):
        raise VideoError(f"{path} has {found.st_size} bytes; the limit max_bytes is {most}.")
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if start.startswith(PLAYLIST_STARTS) or b"<mpd" in start:
        raise VideoError(f"{path} is a playlist that points at other files; name the video file itself.")
    if not re.search(rb"[^\t\n\r\x0c\x1b -~\x80-\xff]", head):
        raise VideoError(f"{path} is a text file, not a video or picture.")
    return resolved


def open_container(path: Path) -> av.container.InputContainer:
    """Returns the opened container of a checked file."""
    try:
        return av.open(
            str(path),
            # Opening decodes a little to learn the format: without this limit a 16000 x 16000 picture in a
            # file of 1 MB takes 600 MB of memory before its size can be asked for.
            options={"max_pixels": str(_limits.max_pixels)},
            # The containers on this list open no other files; playlists would, also with the protocol list.
            container_options={"format_whitelist": CONTAINERS, "protocol_whitelist": "file"},
        )
    except (av.FFmpegError, UnicodeError):
        with path.open("rb") as file:
            is_mp4 = file.read(12)[4:8] == b"ftyp"
    if is_mp4:
        raise VideoError(
            f"{path} is an mp4 file without a readable index (moov): the recording or download was cut off; "
            "get it again."
        )
    raise VideoError(f"{path} is not a video in a known container (mp4, mov, mkv, webm, avi, ts, flv, gif).")


@dataclass(frozen=True)
class Shown:
    """A decoded frame and the time in seconds, by the file's own clock, from which it is shown."""

    start: float
    frame: av.VideoFrame


class VideoFile:
    """One open file and a position in it that moves forward: ask `shown_at` for times that never decrease."""

    def __init__(self, path: str | os.PathLike[str], threads: int | Literal["auto"] = 1):
        self.path = local_file(path)
        self.threads = threads
        self.decoded = 0
        self.end_s: float | None = None  # end of the last frame, once the end has been seen
        self.lost: list[float] = []  # sorted file times of frames that are known to exist but not to decode
        self.untimed = 0
        self.backwards = 0
        self.other_sizes = False
        self.slanted = False
        self.read_error = False
        self._promised_end: float | None = None  # by the header, if the file ends before it
        self._zero = math.inf  # when the first frame is shown, by the file's clock
        self._frame_s = 0.0  # duration of the last frame
        self._reached = -math.inf  # end of the last packet of any track, by the file's clock
        self._whole_until = math.inf
        self._blind_gap = SEEK_GAP_S
        self._in_sequence: int | None = 0  # frames since the start; None once frames were skipped
        self._scan: tuple[float, int] | None = None
        self._converted: tuple[Shown | None, np.ndarray | None] = (None, None)
        self._reformatter = VideoReformatter()
        self._orientations: dict[int, tuple[bool, bool, bool, bool]] = {}
        self._restart()
        try:
            first = self._peek()
            if first is None:
                raise VideoError(
                    f"{self.path}: no frame could be decoded; it is damaged or has frames of more than "
                    f"{_limits.max_pixels} pixels."
                )
            self._current, self._next = first, None
            self.first = first.frame
            self._zero = first.start
            self.size = self._displayed_size(self.first)
            # Containers round timestamps to their ticks (1 ms in mkv): without half a tick of tolerance a
            # 30 fps file read at 30 fps repeats frames. AVI's ticks are whole frames, and exact.
            self.tolerance = min(float(self.stream.time_base) / 2, 5e-4) + 1e-6
            self._check_extent(self.stream.frames, self._declared_end() or 0.0)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.container.close()

    def _restart(self) -> None:
        """Opens the file and stands before its first frame."""
        self.container = open_container(self.path)
        try:
            tracks = self.container.streams.video
            pictures = Disposition.attached_pic | Disposition.timed_thumbnails
            videos = [s for s in tracks if not s.disposition & pictures]
            if not videos:
                has = "only cover art" if tracks else "only sound" if self.container.streams.audio else "none"
                raise VideoError(f"{self.path} has no video track ({has}).")
            self.stream = videos[0]
            codec = self.stream.codec_context
            if codec is None:
                raise VideoError(f"{self.path}: there is no decoder for its video track.")
            if codec.width * codec.height > _limits.max_pixels:
                raise VideoError(
                    f"{self.path}: frames of {codec.width} x {codec.height} pixels are refused; "
                    f"the limit is {_limits.max_pixels} pixels."
                )
            codec.options = {"max_pixels": str(_limits.max_pixels)}
            codec.thread_count = 0 if self.threads == "auto" else self.threads
            codec.thread_type = "NONE" if self.threads == 1 else "AUTO"
        except BaseException:
            self.container.close()
            raise
        # AVI stores no presentation times and what FFmpeg makes up for them is wrong with B-frames: frames
        # are shown in the order in which they leave the decoder, one per tick.
        self._is_avi = self.container.format.name == "avi"
        self._is_mkv = "matroska" in self.container.format.name
        self._has_index = self._is_avi or "mov" in self.container.format.name
        self._position = -math.inf  # ticks of the last packet read
        self._frames = self._decode(at_keyframe=True)
        self._next = None
        self._ended = False

    # Reading forward

    def _packets(self) -> Iterator[av.Packet | None]:
        """Yields the video's packets from here to the end, then None to empty the decoder."""
        torn = False  # the last packet is not whole
        bases: dict[int, Fraction] = {}  # of each track; a packet makes its own anew
        try:
            # All tracks, because how far the sound goes tells a short video from a cut-off file.
            for packet in self.container.demux():
                stamp = packet.dts if packet.pts is None else packet.pts
                if stamp is None:  # the flush at the end, or a packet before time zero
                    if packet.size and packet.stream is self.stream:
                        yield packet
                    continue
                if not packet.is_corrupt and not packet.is_discard:
                    if packet.stream_index not in bases:
                        bases[packet.stream_index] = packet.time_base
                    end = stamp + (packet.duration or 0)
                    self._reached = max(self._reached, _seconds(end, bases[packet.stream_index]))
                if packet.stream is self.stream:
                    torn = packet.is_corrupt
                    if not packet.is_discard and not torn:
                        self._position = stamp if packet.dts is None else packet.dts
                    yield packet
        except av.FFmpegError:
            self.read_error = True
        declared = self._declared_end()
        is_cut = declared is not None and self._reached < declared - max(0.1, 2 * self._frame_s)
        self._promised_end = declared if is_cut else None
        # Packets are stored in decoding order, so some of what was cut off belongs before frames that were
        # read: those that start later than the last decoding time.
        decoded_until = float((self._position + 1) * self.stream.time_base) + self._frame_s
        self._whole_until = decoded_until if is_cut or torn else math.inf
        yield None

    def _decode(self, at_keyframe: bool) -> Iterator[Shown]:
        """Yields the intact frames from here to the end, in the order in which they are shown.

        After a seek (not `at_keyframe`) everything before the first keyframe is skipped, and frames that
        the decoder marks as damaged before the first intact one are not lost: they lack only references.
        After damage all is lost up to the next keyframe, because the decoder paints over what it lacks;
        except what it had been given before and holds back still.
        """
        sought = not at_keyframe
        intact = True
        held: set[int | None] = set()  # timestamps of packets that have not come out as frames
        spared: set[int | None] = set()  # and of those that were held when damage was read
        last = -math.inf
        base = self.stream.time_base
        for packet in self._packets():
            if packet is not None:
                at_keyframe = at_keyframe or packet.is_keyframe
                if not at_keyframe:
                    continue
            try:
                if packet is not None and packet.is_corrupt:
                    spared = set(held)
                    raise av.error.InvalidDataError(0, "damaged packet")
                if packet is not None:
                    held.add(packet.pts)
                frames = self.stream.decode(packet)
            except av.FFmpegError:
                intact = False
                stamp = packet and (packet.dts if packet.pts is None else packet.pts)
                if stamp is not None:
                    self._lose(_seconds(stamp, base))
                continue
            for frame in frames:
                self.decoded += 1
                self._check_extent(self.decoded)
                held.discard(frame.pts)
                stamp = frame.dts if self._is_avi else frame.pts
                if stamp is None and self._is_avi and last > -math.inf:
                    stamp = round(last / base) + 1  # out of the emptied decoder
                if stamp is None:
                    self.untimed += 1
                    continue
                start = _seconds(stamp, base)
                self._check_extent(end=start)
                if start <= last:
                    self.backwards += 1
                    continue
                if packet is None and start > self._whole_until:
                    break
                intact = intact or frame.key_frame
                whole = intact or frame.pts in spared
                if (
                    (self.lost or self.backwards or not whole)
                    and last + 1.5 * self._frame_s < start
                    and last > -math.inf
                ):
                    self._lose(last + self._frame_s)  # in a damaged file a gap is a frame that never came out
                if frame.is_corrupt or frame.width * frame.height > _limits.max_pixels or not whole:
                    if not sought:
                        intact = False
                        self._lose(start)
                    continue
                sought = False
                self._frame_s = _seconds(frame.duration or 0, base) or start - last
                last = start
                yield Shown(start, frame)
        newest = float(self._position * base)
        if not sought and last < newest <= self._whole_until:  # a threaded decoder may give up without a word
            self._lose(newest)

    def _check_extent(self, frames: int = 0, end: float = 0.0) -> None:
        """VideoError if the file has too many frames, or ends too late by its own clock."""
        if frames > _limits.max_frames:
            raise VideoError(
                f"{self.path} has {frames} frames or more; the limit max_frames is {_limits.max_frames}."
            )
        if end - self._zero > _limits.max_duration_s:
            raise VideoError(
                f"{self.path} lasts {end - self._zero:.0f} s or more; "
                f"the limit max_duration_s is {_limits.max_duration_s:g} s."
            )

    def _lose(self, start: float) -> None:
        i = bisect.bisect_left(self.lost, start)
        if i == len(self.lost) or self.lost[i] != start:
            self.lost.insert(i, start)

    def _peek(self) -> Shown | None:
        """Returns the frame after the current one, or None at the end."""
        if self._next is None and not self._ended:
            self._next = next(self._frames, None)
            self._ended = self._next is None
            if self._next is not None and self._in_sequence is not None:
                self._in_sequence += 1
        return self._next

    def shown_at(self, t: float, tolerate_end: bool) -> Shown | None:
        """Returns the frame shown `t` seconds after the first; None past the end or where it is lost.

        With `tolerate_end` the last frame is shown half its duration longer.
        """
        t_file = t + self._zero + self.tolerance
        following = self._peek()
        if following is not None and t_file - following.start > SEEK_GAP_S:
            self._skip_towards(t_file)
        while (following := self._peek()) is not None and following.start <= t_file:
            self._current, self._next = following, None
        if following is None:
            if not math.isfinite(self._frame_s):
                self._frame_s = 1 / (self.average_fps() or 25)
            self.end_s = self._current.start + self._frame_s - self._zero
            if t > self.end_s - self.tolerance:
                if not tolerate_end or t > self.end_s + self._frame_s / 2 + self.tolerance:
                    return None
        i = bisect.bisect_right(self.lost, self._current.start)
        if i < len(self.lost) and self.lost[i] <= t_file:
            return None
        return self._current

    def _skip_towards(self, t_file: float) -> None:
        """Moves to the last keyframe at or before `t_file` if there is one between here and there."""
        following = self._next
        assert following is not None
        base = self.stream.time_base
        index = self.stream.index_entries
        target = min(int(t_file / base), MAX_TICKS)
        # An mkv index may be partly read, and those of the other containers are only what was seen so far.
        if self._has_index or (self._is_mkv and len(index) and index[len(index) - 1].timestamp >= target):
            entry = index.search_timestamp(target)
            if entry < 0 or index[entry].timestamp <= self._position:
                return
        elif t_file - following.start <= self._blind_gap:
            return
        # Without a whole index (mkv reads its own when it first seeks) a seek may land past the target, so it
        # is checked and taken further back.
        for back in (0.0, 1.0, 3.0, 7.0, 15.0, 31.0):
            landed = self._seek(t_file - back)
            if landed is not None and landed.start <= t_file:
                break
        else:
            self.container.close()
            self._restart()
            landed = self._peek()
            assert landed is not None  # it was there when the file was opened
        self._current, self._next = landed, None
        if landed.start < following.start:  # no keyframe between: do not try again for so small a gap
            self._blind_gap = 2 * (t_file - following.start)

    def _seek(self, t_file: float) -> Shown | None:
        """Returns the first intact frame after a seek, which may have missed its target."""
        try:
            self.container.seek(min(int(t_file / self.stream.time_base), MAX_TICKS), stream=self.stream)
        except av.FFmpegError:
            return None
        self._frames, self._next, self._ended = self._decode(at_keyframe=False), None, False
        self._in_sequence = None
        return self._peek()

    # Pictures

    def picture(self, shown: Shown, size: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
        """Returns the frame as upright RGB of `size`; the last one is kept, because slow videos repeat."""
        if self._converted[0] is not shown:
            frame = shown.frame
            flip_x, flip_y, transpose, straight = self._orientation(frame)
            self.slanted |= not straight
            self.other_sizes |= self._displayed_size(frame) != self.size
            height, width = size[::-1] if transpose else size
            scaled = (height, width) != (frame.height, frame.width)
            rgb = self._reformatter.reformat(
                frame, width, height, "rgb24", interpolation=Interpolation.BICUBIC if scaled else None
            ).to_ndarray()
            if transpose:
                rgb = rgb.swapaxes(0, 1)
            self._converted = (shown, rgb[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
        return self._converted[1]

    def _orientation(self, frame: av.VideoFrame) -> tuple[bool, bool, bool, bool]:
        """Returns `orientation` of the first frame that was turned by as much: PyAV leaks its side data."""
        if frame.rotation not in self._orientations:
            self._orientations[frame.rotation] = orientation(frame)
        return self._orientations[frame.rotation]

    def _displayed_size(self, frame: av.VideoFrame) -> tuple[int, int]:
        size = (frame.height, frame.width)
        return size[::-1] if self._orientation(frame)[2] else size

    # What is known about the whole file

    def average_fps(self) -> float | None:
        """Returns the frames per second as counted, else as the header says, else None."""
        if self.end_s and self._in_sequence and not self.damaged:
            return self._in_sequence / self.end_s
        if self._scan is not None and self._scan[0] > 0:
            return self._scan[1] / self._scan[0]
        rate = self.stream.average_rate or self.stream.guessed_rate
        return float(rate) if rate else None

    def declared_duration(self) -> float:
        """Returns the seconds that the header promises from the first shown frame, else the packets' sum."""
        end = self._declared_end()
        return self._scanned_duration() if end is None else end - self._zero

    def _declared_end(self) -> float | None:
        """Returns when the video ends by the file's clock and according to its headers, or None."""
        ends = []
        stream, container = self.stream, self.container
        from_zero = any(name in container.format.name for name in CONTAINERS_TIMED_FROM_ZERO)
        tag = re.fullmatch(r"(\d+):(\d+):([\d.]+)", stream.metadata.get("DURATION", ""))
        if tag and from_zero:
            ends.append(int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3]))
        if stream.duration and not from_zero:
            ends.append(float(((stream.start_time or 0) + stream.duration) * stream.time_base))
        if container.duration:
            ends.append((container.duration + (0 if from_zero else container.start_time or 0)) / av.time_base)
        # An edit list may hide part of the track, and sound may go on after it: the smallest is the best.
        return min(ends, default=None)

    def _scanned_duration(self) -> float:
        """Returns the length of the video by reading all its packets without decoding any."""
        if self._scan is None:
            end, packets = self._zero, 0
            with open_container(self.path) as container:
                try:
                    for packet in container.demux(container.streams[self.stream.index]):
                        if packet.pts is not None and not packet.is_discard:
                            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                            packets += 1
                            self._check_extent(packets, end)
                except av.FFmpegError:
                    self.read_error = True
            self._scan = (end - self._zero, packets)
        return self._scan[0]

    def count_at(self, fps: float, start_s: float, end_s: float | None, limit: int) -> int:
        """Returns how many frames a constant rate will give; a header that says too many is not believed."""

        def frames(duration: float) -> int:
            stop = duration if end_s is None else min(duration, end_s)
            return max(1, math.ceil(min((stop - start_s) * fps, MAX_TICKS)))

        expected = frames(self.declared_duration())
        return expected if expected <= limit else frames(self._scanned_duration())

    @property
    def damaged(self) -> bool:
        return bool(self.lost or self.backwards or self.read_error or self.is_cut)

    @property
    def is_cut(self) -> bool:
        """True if the frames end before the header says they do."""
        return self.end_s is not None and self._promised_end is not None

    def extent(self) -> str:
        """Returns how long the video is, as part of a sentence."""
        if self.end_s is None:
            return f"its header promises {self.declared_duration():.3f} s"
        return f"it can be shown up to {self.end_s:.3f} s"

    def notes(self, left_out: list[float], past_end: list[float]) -> tuple[str, ...]:
        """Returns everything that a user should know about what was not decoded or was changed.

        The arguments are wanted times that could not be shown: inside the video, and after its end.
        """
        notes = []
        if self.is_cut:
            promised = self._promised_end - self._zero
            notes.append(f"cut off: {self.end_s:.2f} s of {promised:.2f} s could be decoded")
        if self.lost and not left_out:
            where = max(0.0, self.lost[0] - self._zero)
            notes.append(f"damaged near {where:.2f} s; no wanted frame was lost")
        if left_out:
            notes.append(
                f"damaged: {len(left_out)} wanted times are left out, the first at {left_out[0]:g} s"
            )
        if self.read_error:
            notes.append("reading stopped early because of damage in the file")
        if past_end:
            notes.append(f"{len(past_end)} wanted times lie past that, the first at {past_end[0]:g} s")
        if self.backwards:
            notes.append(f"{self.backwards} frames were dropped because the file's clock jumps back")
        if self.untimed:
            notes.append(f"{self.untimed} frames without a timestamp are not shown")
        if self.other_sizes:
            notes.append("the frame size changes; all frames were resized to the first one's size")
        if self.slanted:
            notes.append("the display matrix is not a right angle; the nearest one was applied")
        ratio = self.stream.sample_aspect_ratio
        if ratio and ratio != 1:
            notes.append(f"pixels are declared not square ({ratio}); frames are shown as stored")
        return tuple(notes)


def _seconds(ticks: int, base: Fraction) -> float:
    """Returns float(ticks * base), without making a fraction of it, which takes as long as decoding."""
    return ticks * base.numerator / base.denominator


def orientation(frame: av.VideoFrame) -> tuple[bool, bool, bool, bool]:
    """Returns (flip_x, flip_y, transpose, exact): how to make the coded picture upright.

    The display matrix sends a coded point (x, y) to (a x + c y, b x + d y), in 16.16 fixed point. Transpose
    first, then flip. `exact` is False if the matrix turns by something else than right angles.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return False, False, False, True
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5].tolist()
    transpose = abs(b) > abs(a)
    x, y = (c, b) if transpose else (a, d)
    off = max(abs(a), abs(d)) if transpose else max(abs(b), abs(c))
    return x < 0, y < 0, transpose, off < 0.01 * max(abs(x), abs(y), 1)
