"""Pictures wherever they are: what an address stands for."""

from __future__ import annotations

import io
import tarfile

import pyarrow
import pytest
from pyarrow import parquet

from hmsa.labelling.sources import columns, find, name_of, read, read_tar
from hmsa.runs.errors import InputError

fsspec = pytest.importorskip("fsspec", reason="needs the extra cluster")


@pytest.fixture
def memory():
    """`memory(path, content)` writes to memory://; emptied in the end."""
    files = fsspec.filesystem("memory")
    yield files.pipe
    files.rm("/", recursive=True)


@pytest.fixture(params=["folder", "file", "memory"])
def place(request, memory, tmp_path):
    """`place(path, content)` writes below the address `place.address`."""

    def write(path, content):
        if request.param == "memory":
            memory(f"/in/{path}", content)
        else:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(content)

    scheme = {"folder": "", "file": "file://", "memory": "memory://in"}[request.param]
    write.address = scheme if request.param == "memory" else f"{scheme}{tmp_path}"
    return write


def packed(*names):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    return file.getvalue()


def table(**content):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(content), file)
    return file.getvalue()


def test_pictures_below_a_folder(place):
    for path in ("b.PNG", "deep/a.jpg", "deep/notes.txt", ".hidden.png"):
        place(path, path.encode())
    found = find(place.address)
    assert (found.kind, found.count, list(found.pictures)) == ("pictures", 2, ["b", "deep/a"])
    assert [read(a) for a in found.pictures.values()] == [b"b.PNG", b"deep/a.jpg"]
    assert list(find(f"{place.address}/deep/*.jpg").pictures) == ["a"]
    assert list(find(f"{place.address}/b.PNG").pictures) == ["b"]


def test_a_list(place):
    place("a.png", b"1")
    place("some.txt", f"a.png\n\n# no\n{place.address}/b.png\n".encode())
    found = find(f"{place.address}/some.txt")
    assert list(found.pictures.values()) == [f"{place.address}/{n}.png" for n in "ab"]
    assert next(iter(found.pictures)) == "a"


def test_tar_shards(place):
    place("s1.tar", packed("k/1.jpg", "k/1.json", "k/1.seg.png", "2.x.png"))
    place("s0.tar", packed("1.jpg"))
    found = find(f"{place.address}/s*.tar")
    assert (found.kind, found.count) == ("tar", None)
    first, second = found.files
    assert list(read_tar(first)) == [("s0/1", b"abc")]
    assert [name for name, _ in read_tar(second)] == ["s1/k/1", "s1/2"]
    place("s2.tar", packed("1.jpg", "2.jpg")[: 2 * 512 + 513])
    with pytest.raises(InputError, match="s2.tar is broken"):
        list(read_tar(f"{place.address}/s2.tar"))


def test_parquet(place):
    place("t/1.parquet", table(image=["x.jpg", "y.jpg"], more=[1, 2]))
    place("t/_metadata", b"")
    found = find(f"{place.address}/t")
    assert (found.kind, found.count) == ("parquet", 2)
    assert columns(found.files[0]) == ["image"]
    place("bytes.parquet", table(image=[b"1"], name=["n"]))
    assert columns(f"{place.address}/bytes.parquet") == ["image", "name"]
    for content in (table(image=[b"1"]), table(name=["n"])):
        place("t/2.parquet", content)
        with pytest.raises(InputError, match="needed are image"):
            find(f"{place.address}/t")
    place("t/2.parquet", b"nonsense")
    with pytest.raises(InputError, match="not readable Parquet"):
        find(f"{place.address}/t")


def test_refused(place):
    place("a.png", b"")
    place("a.jpg", b"")
    place("mixed/a.png", b"")
    place("mixed/b.tar", b"")
    place("other/a.doc", b"")
    for path, says in (
        ("", "share one name|holds pictures and tar"), ("/mixed", "holds pictures and tar"),
        ("/other", "neither pictures"), ("/nowhere", "cannot be listed|nothing at"),
        ("/no.txt", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            find(place.address + path)
    with pytest.raises(InputError, match="Protocol not known"):
        find("strange://a/b")


def test_names():
    assert name_of("s3://bucket/in/a.b.jpg") == "bucket/in/a.b"
    assert name_of("/data/../a.png") == "data/a"
