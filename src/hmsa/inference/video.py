"""Videos redrawn frame by frame in steady memory; size, times and sound are kept.

Needs PyAV, the extra `video`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runs import InputError, Progress, replace

# Suffix and container of what is written: Matroska where the source's cannot hold H.264
_MP4, _MOV, _MATROSKA = (".mp4", "mp4"), (".mov", "mov"), (".mkv", "matroska")
_OTHERS = "avi flv m2ts mkv mpeg mpg mts ogv ts vob webm wmv"
SUFFIXES = {".mp4": _MP4, ".m4v": _MP4, ".3gp": _MP4, ".mov": _MOV}
SUFFIXES |= {f".{suffix}": _MATROSKA for suffix in _OTHERS.split()}
_BT709, _STUDIO_RANGE = 1, 1  # numbers of ITU-T H.273 and of FFmpeg


def redraw(source: Path, target: Path, draw: Callable[[NDArray[np.uint8]], Any]) -> int:
    """Write the video `source` to `target` with each frame [H,W,3] as draw(frame), of its size.

    Frames are upright and keep their times; sound is copied. Returns the number of frames.
    Raises InputError, and writes nothing, if `source` cannot be decoded.
    """
    av, (_, container) = pyav(), SUFFIXES[source.suffix.lower()]
    with _decoding(source):
        first = _first(source)
        with av.open(str(source)) as taken:
            total = taken.streams.video[0].frames or None  # as the file says
            with Progress(f"predict {source.name}", total) as progress:
                replace(target, lambda file: _redraw(file, container, taken, first, draw, progress))
        return progress.done


def first_image(source: Path) -> NDArray[np.uint8]:
    """The first frame [H,W,3] of a video, upright. Raises InputError if it cannot be decoded."""
    with _decoding(source):
        return _upright(_first(source))


def _first(source: Path) -> Any:
    with pyav().open(str(source)) as taken:
        first = next(taken.decode(video=0), None) if taken.streams.video else None
    if first is None:
        raise InputError(f"{source} has no image that can be decoded; replace or remove it")
    return first


@contextmanager
def _decoding(source: Path) -> Iterator[None]:
    try:
        yield
    except pyav().error.FFmpegError as error:
        reason = error.strerror or error
        raise InputError(f"{source} cannot be decoded ({reason}); replace or remove it") from None


def _redraw(file: Path, form: str, taken: Any, first: Any, draw: Any, progress: Progress) -> None:
    video, audio = taken.streams.video[0], taken.streams.audio
    video.thread_type, last = "AUTO", -1
    rate = video.average_rate or video.guessed_rate or 25
    step = max(1, round(1 / (rate * video.time_base)))
    av = pyav()
    with av.open(str(file), "w", format=form) as made:
        stream = _add_stream(made, video, rate, first)
        encoded = {"width": stream.width, "height": stream.height, "format": stream.pix_fmt}
        encoded |= {"dst_colorspace": _BT709, "dst_color_range": _STUDIO_RANGE}
        tracks = {track.index: made.add_stream_from_template(track) for track in audio}
        for packet in taken.demux(video, *audio):
            if packet.stream is video:
                for frame in packet.decode():
                    image = np.ascontiguousarray(draw(_upright(frame)))
                    drawn = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(**encoded)
                    last = max(last + 1, last + step if frame.pts is None else frame.pts)
                    drawn.pts, drawn.time_base = last, video.time_base
                    made.mux(stream.encode(drawn))
                    progress.advance()
            elif packet.dts is not None:  # else the end of the stream
                packet.stream = tracks[packet.stream.index]
                made.mux(packet)
        made.mux(stream.encode(None))


def _add_stream(made: Any, video: Any, rate: Any, first: Any) -> Any:
    """A stream of H.264 with the times of `video` and the size of its first frame."""
    stream = made.add_stream("libx264", rate=rate, options={"crf": "20"})
    stream.height, stream.width = _upright(first).shape[:2]
    # Half as many colours need even sides
    stream.pix_fmt = "yuv444p" if stream.height % 2 or stream.width % 2 else "yuv420p"
    codec = stream.codec_context
    stream.time_base = codec.time_base = video.time_base
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT709  # else players guess
    codec.color_range = _STUDIO_RANGE
    if video.sample_aspect_ratio and not first.rotation % 180:
        codec.sample_aspect_ratio = video.sample_aspect_ratio
    return stream


def _upright(frame: Any) -> NDArray[np.uint8]:
    image = frame.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90)))


def pyav() -> Any:
    """The module `av`. Raises InputError where it is missing."""
    try:
        import av
    except ImportError:
        raise InputError("videos need PyAV: pip install 'hmsa[video]'") from None
    av.logging.set_level(av.logging.PANIC)  # errors are raised
    return av
