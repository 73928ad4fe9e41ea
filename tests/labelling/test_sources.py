"""Images wherever they are: what an address stands for."""

from __future__ import annotations

import io
import tarfile

import fsspec
import pyarrow
import pytest
from fsspec.implementations.arrow import ArrowFSWrapper
from pyarrow import parquet
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem

from hmsa.labelling import sources
from hmsa.labelling.sources import entries, find, read
from hmsa.runs import InputError


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


def table(size=None, **content):
    file = io.BytesIO()
    parquet.write_table(pyarrow.table(content), file, row_group_size=size)
    return file.getvalue()


def rows(source):
    return [row for piece in source.pieces for row in entries(piece)]


def test_images_below_a_folder(place):
    for path in ("b.PNG", "deep/a.jpg", "deep/notes.txt", ".hidden.png"):
        place(path, path.encode())
    found = find(place.address)
    assert (found.count, list(found.images)) == (2, ["b", "deep/a"])
    assert [read(row["image"]) for row in rows(found)] == [b"b.PNG", b"deep/a.jpg"]
    assert list(find(f"{place.address}/deep/*.jpg").images) == ["a"]
    assert list(find(f"{place.address}/b.PNG").images) == ["b"]


def test_a_list(place):
    place("a.png", b"1")
    place("some.txt", f"a.png\n\n# no\n{place.address}/b.png\n".encode())
    found = find(f"{place.address}/some.txt")
    assert list(found.images.values()) == [f"{place.address}/{n}.png" for n in "ab"]
    assert next(iter(found.images)) == "a"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_list_from_windows(place, encoding):
    place("some.txt", "deep\\ü.png\r\n# no\r\n".encode(encoding))
    images = find(f"{place.address}/some.txt").images
    assert images == {"deep/ü": f"{place.address}/deep/ü.png"}


def test_tar_shards(place):
    place("s1.tar", packed("k/1.jpg", "k/1.json", "k/1.seg.png", "2.x.png"))
    place("s0.tar", packed("1.jpg"))
    found = find(f"{place.address}/s*.tar")
    assert (found.count, found.images, len(found.pieces)) == (None, {}, 2)
    assert [(row["name"], row["content"]) for row in rows(found)] == [
        ("s0/1", b"abc"), ("s1/k/1", b"abc"), ("s1/2", b"abc"),
    ]  # fmt: skip
    place("s2.tar", packed("1.jpg", "2.jpg")[: 2 * 512 + 513])
    whole, broken = rows(find(f"{place.address}/s2.tar"))
    assert (whole["name"], broken["name"]) == ("s2/1", "s2")
    assert "s2.tar cannot be read" in broken["reason"]


HOSTILE = ["../../x", "/x", "k/../../x", "k\0x", "y" * 300, ".."]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_that_lead_out(place, name):
    """They would become labels/NAME.png."""
    if name not in ("k\0x", ".."):  # in a tar it ends there, and is hidden
        place("s.tar", packed("good.jpg", f"{name}.jpg", "more.jpg"))
        good, bad = rows(find(f"{place.address}/s.tar"))
        assert (good["name"], bad["name"]) == ("s/good", "s")
        assert "cannot be the name of a result" in bad["reason"]
    place("b.parquet", table(image=[b"1", b"2"], name=["good", name]))
    with pytest.raises(InputError, match="cannot be the name of a result"):
        find(f"{place.address}/b.parquet")


def test_images_of_one_name(place):
    place("s.tar", packed("1.jpg", "2.jpg", "1.png"))
    *good, bad = rows(find(f"{place.address}/s.tar"))
    assert [row["name"] for row in good] == ["s/1", "s/2"]
    assert "two images have the key 's/1'" in bad["reason"]
    for number in range(2):
        place(f"t/{number}.parquet", table(image=[b"1"], name=["n"]))
        place(f"u/{number}/s.tar", packed("1.jpg"))
    with pytest.raises(InputError, match="two images have the name 'n'"):
        find(f"{place.address}/t")
    assert [row["name"] for row in rows(find(f"{place.address}/u"))] == ["0/s/1", "1/s/1"]


def test_a_huge_member_of_a_tar(place, monkeypatch):
    monkeypatch.setattr(sources, "_LARGEST", 2)
    place("s.tar", packed("1.jpg", "2.txt"))
    (row,) = rows(find(f"{place.address}/s.tar"))
    assert (row["name"], "content" in row) == ("s/1", False)
    assert "has 3 bytes, more than 2" in row["reason"]


def test_an_image_many_times_in_a_small_table(place, grown):
    """Compressed well, as a stranger may do it on purpose: 32 MB a row, 40 rows."""
    content = pyarrow.DictionaryArray.from_arrays([0] * 40, pyarrow.array([bytes(32 << 20)]))
    place("b.parquet", table(image=content, name=[str(i) for i in range(40)]))
    (piece,) = find(f"{place.address}/b.parquet").pieces
    with grown() as more:
        for row in entries(piece):
            assert len(row["content"]) == 32 << 20
    assert more() < 400


def test_parquet(place):
    place("t/1.parquet", table(image=["x.jpg", "deep/y.jpg"], more=[1, 2]))
    place("t/_metadata", b"")
    found = find(f"{place.address}/t")
    assert (found.count, list(found.images)) == (2, ["x", "deep/y"])
    assert found.images["deep/y"].endswith("/t/deep/y.jpg")
    place("bytes.parquet", table(2, image=[b"1", b"2", None], name=["k", "m", "n"]))
    found = find(f"{place.address}/bytes.parquet")
    assert (found.count, found.images, len(found.pieces)) == (3, {}, 2)
    first, second, third = rows(found)
    assert (first["name"], first["content"], second["content"]) == ("k", b"1", b"2")
    assert "n has no content" in third["reason"]
    for content in (table(image=[b"1"]), table(name=["n"])):
        place("t/2.parquet", content)
        with pytest.raises(InputError, match="it needs image"):
            find(f"{place.address}/t")
    place("t/2.parquet", b"nonsense")
    with pytest.raises(InputError, match=r"2.parquet cannot be read"):
        find(f"{place.address}/t")


def test_refused(place):
    place("a.png", b"")
    place("a.jpg", b"")
    place("mixed/a.png", b"")
    place("mixed/b.tar", b"")
    place("other/a.doc", b"")
    for path, says in (
        ("", "images and tar"), ("/mixed", "images and tar"), ("/a.*", "have the same name"),
        ("/other", "no images at"), ("/nowhere", "no images at"), ("/no.txt", "cannot be read"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=says):
            find(place.address + path)
    with pytest.raises(InputError, match="Protocol not known"):
        find("strange://a/b")


def test_names_of_addresses(place):
    place("far.txt", b"s3://bucket/in/a.b.jpg\n../a.png\n")
    assert list(find(f"{place.address}/far.txt").images) == ["bucket/in/a.b", "a"]


def test_pyarrow_stands_in_for_a_missing_driver(monkeypatch, tmp_path):
    def missing(*_):
        raise ImportError("Install s3fs to access S3")

    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.png").write_bytes(b"1")
    disk = SubTreeFileSystem("/", LocalFileSystem())
    monkeypatch.setattr(sources.fsspec.core, "url_to_fs", missing)
    monkeypatch.setattr(sources, "_arrow", lambda root: ArrowFSWrapper(disk))
    found = find(f"s3:/{tmp_path}")
    assert list(found.images) == ["deep/a"]
    assert read(found.images["deep/a"]) == b"1"
