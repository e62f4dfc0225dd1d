"""Archives as sources: the same files as in a folder; hostile and damaged ones do no harm."""

import io
import os
import random
import struct
import tarfile
import zipfile

import pytest

from pipeline.data.shards.manifest import read_problems
from pipeline.data.sources.archives import list_archive
from pipeline.data.sources.files import open_file, open_files
from pipeline.data.sources.voc import voc_source
from pipeline.errors import UserError

CONTENT = {"set/a.txt": b"a" * 700, "set/deep/b.bin": bytes(range(256)) * 5, "set/empty": b""}


def make_tar(path, content=CONTENT, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in content.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_zip(path, content=CONTENT, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def make_folder(path, content=CONTENT):
    for name, data in content.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


MAKE = {
    "folder": make_folder,
    "tar": make_tar,
    "pax.tar": lambda path: make_tar(path, format=tarfile.PAX_FORMAT),
    "zip": make_zip,
    "stored.zip": lambda path: make_zip(path, method=zipfile.ZIP_STORED),
}


@pytest.mark.parametrize("kind", MAKE)
def test_folders_and_archives_give_the_same_files(tmp_path, kind):
    path = MAKE[kind](tmp_path / f"x.{kind}")
    files = open_files(path, "--root")
    assert {name: files.read_bytes(name) for name in files} == CONTENT and files.problems() == []
    inside = open_files(path / "set/deep", "--root")
    assert list(inside) == ["b.bin"] and inside.read_bytes("b.bin") == CONTENT["set/deep/b.bin"]
    assert open_file(path / "set/a.txt", "--annotations") == CONTENT["set/a.txt"]
    assert {repr(files.file(n)) for n in files} == {repr(files.file(n)) for n in files}


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_unsafe_member_names_are_skipped_and_reported(tmp_path, make):
    bad = [
        "../x",
        "a/../../x",
        "/etc/passwd",
        "C:/x",
        "..\\x",
        "C:\\x",
        "\\\\h\\x",
        "a\\..\\x",
        "a\nb",
    ]
    path = make(tmp_path / "x", {**dict.fromkeys(bad, b"evil"), "good": b"good"})
    files = open_files(path, "--root")
    assert list(files) == ["good"]
    assert {p.file for p in files.problems()} == set(bad)
    assert {p.kind for p in files.problems()} == {"member skipped"}


def test_links_and_devices_are_skipped(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
            info = tarfile.TarInfo(f"x{kind.decode()}")
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    members, skipped = list_archive(path)
    assert members == {} and [r.reason for r in skipped] == ["link or special file"] * 4
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    assert list_archive(tmp_path / "x.zip")[1] == [("link", "link")]


@pytest.mark.parametrize("make", [make_tar, make_zip])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_duplicate_names_keep_the_first_member(tmp_path, make):
    class Duplicates(dict):
        def items(self):
            return [("a", b"first"), ("./a", b"second"), ("a", b"third")]

    files = open_files(make(tmp_path / "x", Duplicates()), "--root")
    assert files.read_bytes("a") == b"first"
    assert [p.reason for p in files.problems()] == ["duplicate name; the first one is kept"] * 2


def test_zip_bombs_are_skipped_before_inflation(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"bomb": bytes(30 * 2**20), "ok": b"fine"})
    files = open_files(path, "--root")
    assert list(files) == ["ok"] and "would inflate to 31457280" in files.problems()[0].reason


def test_zip_with_wrong_size_fails_its_checksum(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a": bytes(5000)})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = struct.pack("<I", 100)
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged: the checksum differs"):
        open_files(path, "--root").read_bytes("a")


@pytest.mark.parametrize(
    ("packed", "reason"),
    [
        (2**32 - 2, "truncated: the zip ends inside this member"),
        (100_000, "100000 bytes that would inflate to only 5000"),
    ],
)
def test_zip_with_wrong_packed_size_is_skipped_before_it_is_read(tmp_path, packed, reason):
    large = random.Random(0).randbytes(200_000)
    path = make_zip(tmp_path / "x.zip", {"a": bytes(5000), "b": large})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 20
    data[at : at + 4] = struct.pack("<I", packed)
    path.write_bytes(data)
    files = open_files(path, "--root")
    assert list(files) == ["b"] and files.read_bytes("b") == large
    assert [(p.file, p.reason) for p in files.problems()] == [("a", reason)]


def test_read_raises_above_the_size_limit(tmp_path):
    for make in (make_tar, make_zip):
        with pytest.raises(ValueError, match="larger than the limit of 699 bytes"):
            open_files(make(tmp_path / make.__name__), "--root").read_bytes("set/a.txt", 699)
    with pytest.raises(ValueError, match="larger than the limit of 699 bytes"):
        open_files(make_folder(tmp_path / "f"), "--root").read_bytes("set/a.txt", 699)


def test_encrypted_members_and_unknown_compression_are_skipped(tmp_path):
    path = make_zip(tmp_path / "x.zip", {"a": b"x" * 99}, zipfile.ZIP_LZMA)
    assert "other than deflate" in list_archive(path)[1][0].reason
    data = bytearray(make_zip(tmp_path / "y.zip", {"a": b"x"}).read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "y.zip").write_bytes(data)
    assert list_archive(tmp_path / "y.zip")[1][0].reason == "encrypted"


def test_truncated_tars_are_reported(tmp_path):
    content = {name: bytes([65 + i]) * 900 for i, name in enumerate("abc")}
    whole = make_tar(tmp_path / "x.tar", content).read_bytes()
    size = 512 + 1024  # of a member, with its header
    cuts = {
        2 * size + 700: (["a", "b"], "truncated: the tar ends inside this member"),
        2 * size + 100: (["a", "b"], "invalid tar header at byte 3072"),
        2 * size: (["a", "b"], "end-of-archive marker not found"),
        3 * size: (["a", "b", "c"], "end-of-archive marker not found"),
    }
    for length, (left, reason) in cuts.items():
        path = tmp_path / f"{length}.tar"
        path.write_bytes(whole[:length])
        files = open_files(path, "--root")
        assert list(files) == left
        assert any(reason in p.reason for p in files.problems()), (length, files.problems())


def test_corrupt_tar_header_is_reported(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"a": b"1", "b": b"2", "c": b"3"})
    data = bytearray(path.read_bytes())
    data[1024:1030] = b"\xff" * 6
    path.write_bytes(data)
    files = open_files(path, "--root")
    assert list(files) == ["a"]
    assert files.problems()[0].reason == "invalid tar header at byte 1024; the rest is not read"


def test_truncated_zip_and_compressed_tar_raise_user_errors(tmp_path):
    path = make_zip(tmp_path / "x.zip")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(
        UserError, match=r"--root .*x\.zip: the end of the zip is missing; download it again"
    ):
        open_files(path, "--root")
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("a"))
    with pytest.raises(UserError, match=r"x\.tar\.gz: a compressed tar .* decompress it first"):
        open_files(tmp_path / "x.tar.gz", "--root")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("none", "--root .*none: no such directory or archive"),
        ("x.tar/none", "has no files in none"),
        ("empty.tar", "the archive contains no files"),
    ],
)
def test_missing_paths_raise_user_errors(tmp_path, path, message):
    make_tar(tmp_path / "x.tar")
    make_tar(tmp_path / "empty.tar", {})
    with pytest.raises(UserError, match=message):
        open_files(tmp_path / path, "--root")
    with pytest.raises(UserError, match="has no file none"):
        open_file(tmp_path / "x.tar/none", "--annotations")


def test_macos_metadata_is_ignored(tmp_path):
    content = {"a": b"1", "__MACOSX/._a": b"2", "b/._c": b"3"}
    assert list(open_files(make_zip(tmp_path / "x.zip", content), "--root")) == ["a"]
    assert list(open_files(make_folder(tmp_path / "f", content), "--root")) == ["a"]


@pytest.mark.parametrize(
    ("start", "reason"),
    [("C:\\data\\", "absolute name"), ("/abs/", "absolute name"), ("../", "name contains ..")],
)
def test_archive_of_skipped_members_only_names_the_reason(tmp_path, start, reason):
    path = make_zip(tmp_path / "x.zip", {f"{start}a.xml": b"", f"{start}a.jpg": b""})
    with pytest.raises(UserError) as caught:
        open_files(path, "--root")
    assert f"2 members skipped, the first: {start}a.xml: {reason}; create" in str(caught.value)


def test_folder_that_is_also_linked_is_listed_at_its_own_place(tmp_path):
    make_folder(tmp_path, {"set/b/train/x.jpg": b"x", "set/z.txt": b"", "other/c/y.jpg": b"y"})
    (tmp_path / "set/a").symlink_to(tmp_path / "set/b/train")
    (tmp_path / "set/b/current").symlink_to(tmp_path / "set/b/train")
    (tmp_path / "set/c").symlink_to(tmp_path / "other")
    (tmp_path / "set/d").symlink_to(tmp_path / "other/c")
    files = open_files(tmp_path / "set", "--root")
    assert list(files) == ["z.txt", "b/train/x.jpg", "c/c/y.jpg"]


def test_cyclic_links_are_followed_once(tmp_path):
    make_folder(tmp_path / "f", {"a/x": b"1"})
    (tmp_path / "f/a/loop").symlink_to(tmp_path / "f")
    assert list(open_files(tmp_path / "f", "--root")) == ["a/x"]


def test_damaged_image_in_a_zip_is_skipped_and_reported(shared, tmp_path, convert_source):
    root = shared / "data/mini"
    path = tmp_path / "mini.zip"
    make_zip(path, {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*.*"))})
    bad = sorted(root.glob("JPEGImages/*.jpg"))[3].name
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo(f"JPEGImages/{bad}").header_offset
    data = bytearray(path.read_bytes())
    data[at + 3000 : at + 3100] = bytes(100)
    path.write_bytes(data)
    manifest = convert_source(voc_source(path, None), tmp_path / "out")
    assert manifest.samples == 19
    (problem,) = read_problems(tmp_path / "out")
    assert problem.file == bad and problem.reason.startswith("the zip is damaged: ")


def test_member_of_negative_size_ends_the_listing(tmp_path):
    path = make_tar(tmp_path / "x.tar", {"a.txt": b"a" * 100, "b.txt": b"b" * 100})
    data = bytearray(path.read_bytes())
    header = data[1024:1536]
    header[124:136] = b"\xff" * 10 + b"\xfe\x00"  # -512, in base 256: back to this header
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[1024:1536] = header
    path.write_bytes(data)
    members, skipped = list_archive(path)
    assert list(members) == ["a.txt"]
    # Newer versions of Python reject such a header as invalid.
    reasons = ("'b.txt' has -512 bytes", "invalid tar header at byte 1024")
    (one,) = skipped
    assert one.reason in [f"{reason}; the rest is not read" for reason in reasons]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_too_many_members_raise_while_listing(tmp_path, monkeypatch, make):
    monkeypatch.setattr("pipeline.data.sources.archives.MAX_MEMBERS", 3)
    assert len(list_archive(make(tmp_path / "x"))[0]) == 3
    monkeypatch.setattr("pipeline.data.sources.archives.MAX_MEMBERS", 2)
    with pytest.raises(UserError, match="more than 2 members, which is the limit"):
        list_archive(make(tmp_path / "x"))


@pytest.mark.parametrize("make", [make_folder, make_tar, make_zip])
def test_backslashes_separate_folders(tmp_path, make):
    content = {"VOC\\Annotations\\a.xml": b"xml", "VOC\\JPEGImages\\a.jpg": b"jpg"}
    path = make(tmp_path / "x", content)
    if make is make_zip:
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("VOC\\Empty\\", b"")
    files = open_files(path, "--root")
    assert {name: files.read_bytes(name) for name in files} == {
        name.replace("\\", "/"): data for name, data in content.items()
    }
    assert files.problems() == []
    assert list(open_files(path, "--root").subfolder("VOC/JPEGImages")) == ["a.jpg"]


def test_backslashes_never_lead_out_of_a_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    files = open_files(
        make_folder(tmp_path / "f", {"..\\secret.jpg": b"", "\\a.jpg": b""}), "--root"
    )
    assert list(files) == []
    assert {p.file for p in files.problems()} == {"..\\secret.jpg", "\\a.jpg"}


@pytest.mark.parametrize(("raw", "name"), [("café".encode(), "café"), (b"caf\x82", "café")])
def test_zip_names_without_the_utf8_flag_are_read(tmp_path, raw, name):
    # The second one is in code page 437, as the flag's absence means.
    path = make_zip(tmp_path / "x.zip", {"#" * len(raw): b"1"})
    path.write_bytes(path.read_bytes().replace(b"#" * len(raw), raw))
    files = open_files(path, "--root")
    assert list(files) == [name] and files.read_bytes(name) == b"1"


@pytest.mark.parametrize("make", [make_folder, make_tar, make_zip])
def test_archives_inside_are_named(tmp_path, make):
    nested = {"export/inner.zip": b"PK", "__MACOSX/export/._inner.zip": b"", "README.txt": b""}
    path = make(tmp_path / "x", nested)
    remedy = "give that as" if make is make_folder else f"unpack {path} and give the archive inside"
    with pytest.raises(
        UserError, match=f"no images, but an archive .*: export/inner.zip; {remedy}"
    ):
        open_files(path, "--root")
    files = open_files(make(tmp_path / "y", {**nested, "a.JPG": b""}), "--root")
    (problem,) = files.problems()
    assert str(problem).startswith("export/inner.zip: note: an archive inside the source is not")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_folder_without_permission_is_reported(tmp_path):
    make_folder(tmp_path / "f")
    (tmp_path / "f/set/deep").chmod(0)
    (problem,) = open_files(tmp_path / "f", "--root").problems()
    assert "set/deep: member skipped: cannot be read: Permission denied" in str(problem)
