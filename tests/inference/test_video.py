"""Videos: frames, times, size and sound come through; what is no video is one line."""

from __future__ import annotations

import sys
from fractions import Fraction

import numpy as np
import pytest

from hmsa.inference.video import SUFFIXES, redraw
from hmsa.runs.errors import InputError

av = pytest.importorskip("av")


@pytest.fixture
def film(tmp_path):
    """Make a video of flat frames, frame i of grey 40 + 10 i: `(name, ..) -> its path`."""

    def make(
        name, frames=12, size=(48, 64), rate=Fraction(24000, 1001), sound="aac", codec="libx264",
        turned=0, times=None,
    ):  # fmt: skip
        file = tmp_path / name
        with av.open(str(file), "w") as made:
            stream = made.add_stream(codec, rate=rate, options={"g": "4"})
            stream.height, stream.width = size
            stream.pix_fmt = "yuv444p" if size[0] % 2 else "yuv420p"
            if turned:
                stream.set_display_rotation(turned)
            track = made.add_stream(sound, rate=48000, layout="mono") if sound else None
            for i in range(frames):
                gray = np.full((*size, 3), 40 + 10 * i, np.uint8)
                gray[:, : size[1] // 2, 2] = 0  # left is yellow
                frame = av.VideoFrame.from_ndarray(gray, format="rgb24")
                frame.pts, frame.time_base = (times[i] if times else i), 1 / rate
                made.mux(stream.encode(frame))
            made.mux(stream.encode(None))
            if track:
                samples = round(frames / rate * 48000) // 960
                for i in range(samples):
                    wave = np.sin(np.arange(i * 960, (i + 1) * 960) / 20)
                    layout = "fltp" if sound == "aac" else "s16"
                    wave = wave.astype(np.float32) if sound == "aac" else (wave * 9999).astype("i2")
                    frame = av.AudioFrame.from_ndarray(wave[None], format=layout, layout="mono")
                    frame.sample_rate, frame.pts = 48000, i * 960
                    made.mux(track.encode(frame))
                made.mux(track.encode(None))
        return file

    return make


def told(file):
    """Size, rate, the grey and time of each frame, and the packets of sound."""
    with av.open(str(file)) as taken:
        video = taken.streams.video[0]
        frames = list(taken.decode(video))
        left = frames[0].to_ndarray(format="rgb24")[4:-4, 4:20].mean((0, 1))
        grays = [frame.to_ndarray(format="rgb24")[4:-4, -20:-4].mean() for frame in frames]
        times = [float(frame.time) for frame in frames]
        rate, codec = video.average_rate, video.codec_context.name
        size = (frames[0].height, frames[0].width)
    sound, starts = b"", []
    with av.open(str(file)) as taken:
        if taken.streams.audio:
            packets = [p for p in taken.demux(audio=0) if p.dts is not None]
            sound = b"".join(bytes(p) for p in packets)  # PCM is cut elsewhere by each container
            starts = [float(packets[0].pts * packets[0].time_base)]
    return {"size": size, "rate": rate, "codec": codec, "left": left, "grays": grays,
            "times": times, "sound": sound, "sound_from": starts}  # fmt: skip


def brighter(image):
    return image + np.uint8(20)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("a.mp4", {}),
        ("a.MOV", {"sound": "pcm_s16le"}),
        ("a.mkv", {"size": (49, 63)}),
        ("a.avi", {"codec": "mpeg4", "sound": "pcm_s16le", "rate": Fraction(25)}),
        ("a.webm", {"codec": "libvpx", "sound": None}),
        ("a.m4v", {}),
        ("a.ts", {"sound": "mp2"}),
        ("a.mpg", {"codec": "mpeg2video", "sound": "mp2", "rate": Fraction(25)}),
        ("a.wmv", {"codec": "wmv2", "sound": None, "rate": Fraction(25)}),
        ("a.flv", {"codec": "flv", "rate": Fraction(25)}),
        ("a.mp4", {"rate": Fraction(10), "times": [0, 1, 2, 3, 5, 8, 9, 10, 20, 21, 22, 30]}),
    ],
)  # fmt: skip
def test_all_but_the_pixels_is_kept(film, tmp_path, name, how):
    source = film(name, **how)
    target = tmp_path / f"out{SUFFIXES[source.suffix.lower()][0]}"
    assert redraw(source, target, brighter) == 12
    before, after = told(source), told(target)
    assert after["size"] == before["size"]
    if "times" not in how:  # else an average, and the last frame has no end
        assert after["rate"] == before["rate"]
    assert after["codec"] == "h264"
    np.testing.assert_allclose(after["times"], before["times"], atol=2e-3)
    np.testing.assert_allclose(after["grays"], np.add(before["grays"], 20), atol=3)
    np.testing.assert_allclose(after["left"], before["left"] + 20, atol=5)
    assert after["sound"] == before["sound"]
    assert after["sound_from"] == pytest.approx(before["sound_from"], abs=2e-3)
    assert bool(after["sound"]) == bool(how.get("sound", "aac"))


def test_a_turned_video_is_upright(film, tmp_path):
    """Turned left by 90 degrees, what was on the left is below."""
    frames = []

    def keep(image):
        frames.append(image)
        return image

    redraw(film("t.mov", 3, turned=90), tmp_path / "out.mov", keep)
    assert frames[0].shape == (64, 48, 3)
    assert frames[0][-10:, :, 2].mean() < 20 < frames[0][:10, :, 2].mean()
    assert told(tmp_path / "out.mov")["size"] == (64, 48)


def test_what_is_no_video_is_one_line(film, tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"nonsense" * 100)
    with av.open(str(tmp_path / "sound.mp4"), "w") as made:
        track = made.add_stream("aac", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 960), "f4"), format="fltp", layout="mono")
        frame.sample_rate = 48000
        made.mux(track.encode(frame))
        made.mux(track.encode(None))
    for name, says in (("bad.mp4", "cannot be decoded"), ("sound.mp4", "has no image")):
        with pytest.raises(InputError, match=f"{name} {says}"):
            redraw(tmp_path / name, tmp_path / "out" / name, brighter)
    assert not list(tmp_path.glob("out/.*"))
    assert not list(tmp_path.glob("out/*"))


def test_without_pyav_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pip install 'hmsa\[video\]'"):
        redraw(tmp_path / "a.mp4", tmp_path / "out.mp4", brighter)
