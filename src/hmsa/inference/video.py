"""Videos, frame by frame in steady memory: another picture in each, size, pace and sound kept.

Needs PyAV, the extra `video`.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..runs.errors import InputError
from ..runs.files import replace
from ..runs.progress import Progress
from .pipeline import flow

Bytes = NDArray[np.uint8]
Seen = TypeVar("Seen")

SUFFIXES = {".mp4", ".mov", ".avi", ".mkv", ".webm"}
_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}
_ENCODERS = ("libx264", "mpeg4")  # the first that PyAV was built with is taken
_BT709, _STUDIO_RANGE = 1, 1  # numbers of ITU-T H.273 and of FFmpeg


def redrawn(source: Path) -> str:
    """Suffix of what `redraw` makes: Matroska where the other container cannot hold H.264."""
    suffix = source.suffix.lower()
    return suffix if suffix in _FORMATS else ".mkv"


def redraw(
    source: Path, target: Path, look: Callable[[Bytes], Seen], draw: Callable[[Bytes, Seen], Bytes]
) -> int:
    """Write the video `source` to `target`, each frame [H,W,3] as draw(frame, look(frame)).

    Frames come upright and keep their times; sound is copied as it is. Returns how many frames
    there were. InputError if `source` cannot be decoded, and nothing is written then.
    """
    av = pyav()
    with _one_line(av, source):
        total = _count(av, source)
        with av.open(str(source)) as taken, Progress(f"predict {source.name}", total) as meter:
            replace(target, lambda file: _redraw(av, taken, file, target.suffix, look, draw, meter))
            return meter.done


def _redraw(
    av: Any, taken: Any, file: Path, suffix: str, look: Any, draw: Any, meter: Progress
) -> None:
    video = taken.streams.video[0]
    video.thread_type = "AUTO"
    sounds: deque[Any] = deque()  # read, not yet written
    with av.open(str(file), "w", format=_FORMATS[suffix]) as made:
        tracks = {s.index: made.add_stream_from_template(s) for s in taken.streams.audio}
        encoder = _Encoder(av, made, video)

        def frames() -> Iterator[Any]:
            for packet in taken.demux(video, *taken.streams.audio):
                if packet.stream is video:
                    yield from packet.decode()
                elif packet.dts is not None:  # else the end of the stream
                    sounds.append(packet)

        def pass_sound() -> None:
            while sounds:
                packet = sounds.popleft()
                packet.stream = tracks[packet.stream.index]
                made.mux(packet)

        def write(frame: Any, image: Bytes, seen: Any) -> None:
            encoder.add(draw(image, seen), frame)
            pass_sound()  # not before: the first packet starts the file, sizes must be known

        def looks(images: list[Bytes]) -> list[Any]:
            return [look(image) for image in images]

        for _, problem in flow(frames(), _upright, looks, write, threads=1):
            if problem:
                raise problem
            meter.advance()
        if not meter.done:
            raise InputError(f"{taken.name} holds no frame that can be decoded")
        pass_sound()
        encoder.close()


class _Encoder:
    """The drawn stream, of the pace of `video`; its size is that of the first frame."""

    def __init__(self, av: Any, made: Any, video: Any) -> None:
        self._av, self._made, self._video = av, made, video
        self._rate = Fraction(video.average_rate or video.guessed_rate or 25)
        codec = next(name for name in _ENCODERS if name in av.codec.codecs_available)
        best = codec == "libx264"
        self._stream = made.add_stream(
            codec, rate=self._rate, options={"crf": "20"} if best else {}
        )
        if best:  # the other knows no times finer than 1/65535 s
            self._stream.time_base = self._stream.codec_context.time_base = video.time_base
        self._best, self._last = best, -1

    def add(self, image: Bytes, frame: Any) -> None:
        height, width = image.shape[:2]
        stream = self._stream
        if self._last < 0:
            stream.width, stream.height = width, height
            # Half as many colours need even sides
            stream.pix_fmt = "yuv444p" if self._best and (width % 2 or height % 2) else "yuv420p"
            about = stream.codec_context  # said, or else players guess, by the size
            about.colorspace = about.color_primaries = about.color_trc = _BT709
            about.color_range = _STUDIO_RANGE
            if not self._best:  # its default is for the size of a stamp
                stream.bit_rate = int(width * height * self._rate / 5)
            if self._video.sample_aspect_ratio and not frame.rotation % 180:
                stream.codec_context.sample_aspect_ratio = self._video.sample_aspect_ratio
        drawn = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        drawn = drawn.reformat(
            format=stream.pix_fmt, dst_colorspace=_BT709, dst_color_range=_STUDIO_RANGE
        )
        step = 1 / (self._rate * self._video.time_base)
        pts = frame.pts if frame.pts is not None else self._last + max(1, round(step))
        self._last = drawn.pts = max(pts, self._last + 1)
        drawn.time_base = self._video.time_base
        self._made.mux(stream.encode(drawn))

    def close(self) -> None:
        self._made.mux(self._stream.encode(None))


def _upright(frame: Any) -> Bytes:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def _count(av: Any, source: Path) -> int:
    """Frames, as the container says, or else counted without decoding them."""
    with av.open(str(source)) as taken:
        if not taken.streams.video:
            raise InputError(f"{source} holds no pictures; give a video that does")
        return taken.streams.video[0].frames or sum(bool(p.size) for p in taken.demux(video=0))


def pyav() -> Any:
    """The module `av`; InputError where it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError(
            "videos need PyAV, which is not there: pip install 'hmsa[video]'"
        ) from None
    av.logging.set_level(av.logging.PANIC)  # errors are raised, and told in one line
    return av


@contextmanager
def _one_line(av: Any, source: Path) -> Iterator[None]:
    try:
        yield
    except av.error.FFmpegError as error:
        if error.errno == errno.ENOSPC:  # stands against the target
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
        reason = error.strerror or error
        raise InputError(f"{source} cannot be decoded ({reason}); replace or remove it") from None
