"""Runs doors in a process of their own, where a crash, a hang or too much memory is a result."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

from fuzz.doors import DOORS
from fuzz.mutate import ESCAPE

SECONDS, MEBIBYTES = 60, 700  # that one file may take; the machine may be busy
PIXELS = 1 << 22  # that may be decoded at once
PRELOADED = [
    "hmsa.check.check",
    "hmsa.data.imports",
    "hmsa.inference.export",
    "hmsa.labelling.review",
    "hmsa.labelling.autolabel",
]
ADDRESSES = 6 << 30  # bytes more of address space, to protect the machine


class Result(NamedTuple):
    kind: str  # accepted, refused or violation
    text: str = ""


class Runner:
    """One door; `runner(content)` -> what came of a file with that content."""

    def __init__(self, door: str) -> None:
        self.door = door
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOADED)
        self._process: multiprocessing.process.BaseProcess | None = None

    def __call__(self, content: bytes) -> Result:
        if not self._process or not self._process.is_alive():
            self._pipe, theirs = self._context.Pipe()
            self._process = self._context.Process(
                target=_serve, args=(self.door, theirs), daemon=True
            )
            self._process.start()
            theirs.close()
        try:
            self._pipe.send_bytes(content)
            if self._pipe.poll(SECONDS):
                return Result(*self._pipe.recv())
            text = f"takes more than {SECONDS} s"
        except (EOFError, OSError):
            self._process.join(SECONDS)
            text = f"the process ends with code {self._process.exitcode}"
        self.close()
        return Result("violation", text)

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.join()
            self._process = None


def _serve(name: str, pipe: Connection) -> None:
    limit_memory()
    door, root = DOORS[name], Path(tempfile.mkdtemp(prefix="hmsa-fuzz-"))
    os.environ |= {"HMSA_MAX_PIXELS": str(PIXELS), "XDG_CACHE_HOME": str(root / "cache")}
    os.environ |= {"TMPDIR": str(root / "tmp"), "HF_HUB_OFFLINE": "1"}
    tempfile.tempdir = str(root / "tmp")
    try:
        while True:
            _fresh(root)
            file = root / "in" / door.file
            for path, content in {door.file: pipe.recv_bytes, **door.beside}.items():
                (root / "in" / path).parent.mkdir(parents=True, exist_ok=True)
                (root / "in" / path).write_bytes(content())
            os.chdir(root / "in")
            pipe.send(_judged(name, file, root))
    except EOFError:  # nobody asks for more
        shutil.rmtree(root, ignore_errors=True)


def _fresh(root: Path) -> None:
    for name in ("in", "out", "tmp"):
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)


def _judged(name: str, file: Path, root: Path) -> Result:
    before, peak = _listed(root), reset_peak()
    with (root / "stderr").open("w+b") as stream, warnings.catch_warnings(record=True) as caught:
        kept = os.dup(2)
        os.dup2(stream.fileno(), 2)
        try:
            result = _called(name, file, root)
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            stream.seek(0)
            printed = stream.read().decode(errors="replace")
    (root / "stderr").unlink()
    if made := sorted(_listed(root) - before):
        (root / made[0]).unlink()
        return Result("violation", f"writes {made[0]}")
    if result.kind == "violation":
        return result
    if caught:
        place = f"{Path(caught[0].filename).name}:{caught[0].lineno}"
        return Result("violation", f"warns at {place}: {caught[0].message}")
    if found := re.search(r"^.*\.py:\d+.*$|Traceback.*", printed, re.MULTILINE):
        return Result("violation", f"prints {found[0]}")
    if (grown := peak_now() - peak) > MEBIBYTES:
        return Result("violation", f"takes {grown} MiB")
    return result


def _called(name: str, file: Path, root: Path) -> Result:
    from hmsa.runs import InputError

    try:
        DOORS[name].read(file, root / "out" / "made")
    except InputError as error:
        text = str(error)
        if "\n" in text or not text:
            return Result("violation", f"InputError of several lines: {text!r}")
        return Result("refused", text)
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        ours = [f for f in frames if "/hmsa/" in f.filename or "/fuzz/" in f.filename]
        place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
        return Result("violation", f"{type(error).__name__} at {place}: {str(error)[:200]}")
    return Result("accepted")


def _listed(root: Path) -> set[str]:
    """All files but those that may change; .ses is left by onnxruntime."""
    found = (path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    inside = {p for p in found if not p.startswith(("out/made/", "cache/", "stderr"))}
    return inside - {"tmp/.ses"} | {*map(str, Path("/tmp").glob(f"{Path(ESCAPE).name}*"))}


def limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        most = pages * resource.getpagesize() + ADDRESSES
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def reset_peak() -> int:
    """MiB in use, from where on the peak is measured; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    Path("/proc/self/clear_refs").write_text("5")
    return peak_now()


def peak_now() -> int:
    if sys.platform != "linux":
        return 0
    told = Path("/proc/self/status").read_text().split()
    return int(told[told.index("VmHWM:") + 1]) >> 10
