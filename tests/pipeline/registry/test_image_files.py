"""The images that predictions are made for, and the names of their pictures."""

import os
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.registry.image_files import PictureNames, list_images

JPEG = b"\xff\xd8\xff\xe0"


@pytest.fixture
def folder(tmp_path):
    """Return a folder of images, other files, and links."""
    root, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    files = ["a.JPG", "b/c.png", "b/._c.png", "notes.txt", "movie.mp4", "d.heic"]
    for path in (*(root / name for name in files), elsewhere / "e.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (root / "camera-1").write_bytes(JPEG)
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(root)
    (root / "broken.jpg").symlink_to(tmp_path / "none")
    os.mkfifo(root / "pipe")
    return root


def test_links_are_followed_once_and_other_files_are_counted(folder, tmp_path):
    images, others = list_images(folder, tmp_path / "out")
    names = ["a.JPG", "b/c.png", "broken.jpg", "camera-1", "d.heic", "linked/e.jpg"]
    assert [image.name for image in images] == names
    assert [image.name for image in images if image.file is None] == ["broken.jpg"]
    assert others == 3
    assert [image.name for image in list_images(folder, folder / "b").images] == [
        name for name in names if name != "b/c.png"
    ]


def test_archive_is_read_like_a_folder(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("set/a.jpg", JPEG)
        archive.writestr("set/readme.md", "text")
    for source, name in (("x.zip", "set/a.jpg"), ("x.zip/set", "a.jpg")):
        images, others = list_images(tmp_path / source, tmp_path / "out")
        assert [image.name for image in images] == [name] and others == 1
        assert images[0].file.read(9) == JPEG


def test_single_files_and_lists(folder, tmp_path, monkeypatch):
    for name in ("a.JPG", "camera-1"):
        (image,), others = list_images(folder / name, tmp_path)
        assert image.name == name and image.file is not None and others == 0
    monkeypatch.chdir(tmp_path)
    text = ["a.JPG", "elsewhere/e.jpg", str(folder / "b/c.png"), "a.JPG", "none.jpg", "x\0y", "b"]
    (folder / "list.txt").write_text("\n".join(text))
    images = list_images(folder / "list.txt", tmp_path).images
    assert [image.file is not None for image in images] == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none", "no such file or directory"),
        ("movie.mp4", "not an image, a directory, an archive or a list"),
        ("notes.txt", "is empty"),
    ],
)
def test_other_sources_are_refused(folder, name, message):
    with pytest.raises(UserError, match=message):
        list_images(folder / name, folder / "out")


def test_pictures_have_names_of_their_own():
    names = [
        "c.webp",
        "c.webp.jpg",
        "C.WEBP.JPG",
        "/x/a.jpg",
        "../x/a.jpg",
        "C:\\x\\a.jpg",
        "c.webp.jpg/d.png",
    ]
    new = PictureNames().new
    assert [new(name) for name in dict.fromkeys(names)] == [
        *("c.webp.jpg", "c.webp-2.jpg", "C.WEBP-3.JPG"),
        *("x/a.jpg", "x/a-2.jpg", "x/a-3.jpg", "c.webp.jpg_d.png"),
    ]


@given(st.lists(st.text("aA./\\-2:jpg", max_size=8)))
def test_names_never_collide_or_lead_out(names):
    new = PictureNames().new
    made = [Path(new(name)) for name in names]
    folded = [Path(str(path).casefold()) for path in made]
    assert len(set(folded)) == len(folded)
    assert not any(parent in folded for path in folded for parent in path.parents)
    assert not any(path.is_absolute() or ".." in path.parts for path in made)
