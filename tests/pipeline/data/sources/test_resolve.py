"""Entries of annotations that were written elsewhere find the files of a source, and only those."""

from unicodedata import normalize

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.sources.paths import list_entries, path_parts
from pipeline.data.sources.resolve import resolve

CAFE = normalize("NFC", "café.jpg")


def found(entry, *names, **options):
    """Return the name that an entry means, or None, and the reasons of all problems."""
    result = resolve([entry], names, "ROOT", "list.txt", **options)
    assert set(result.found) | set(result.missing) == {entry}
    return result.found.get(entry), [problem.reason for problem in result.problems]


@pytest.mark.parametrize(
    "entry", ["images/a.jpg", "./images/a.jpg", "images//a.jpg", "x/../images/a.jpg"]
)
def test_names_as_written_are_not_reported(entry):
    assert found(entry, "images/a.jpg") == ("images/a.jpg", [])


@pytest.mark.parametrize(
    ("entry", "name", "ways"),
    [
        ("/home/me/data/images/a.jpg", "images/a.jpg", ["start dropped"]),
        ("/content/drive/MyDrive/ds/images/a.jpg", "images/a.jpg", ["start dropped"]),
        ("/images/a.jpg", "images/a.jpg", ["start dropped"]),
        ("../images/a.jpg", "images/a.jpg", ["start dropped"]),
        ("C:\\Users\\me\\ds\\images\\a.jpg", "images/a.jpg", ["backslashes", "start dropped"]),
        ("\\\\server\\share\\images\\a.jpg", "images/a.jpg", ["backslashes", "start dropped"]),
        ("..\\..\\label-studio\\upload\\4\\a.jpg", "a.jpg", ["backslashes", "start dropped"]),
        ("images\\a.jpg", "images/a.jpg", ["backslashes"]),
        ("ds/images/a.jpg", "images/a.jpg", ["start dropped"]),
        ("a.jpg", "train2017/a.jpg", []),
        ("imgs/a.jpg", "images/a.jpg", ["in another folder"]),
        ("a.jpg", "a.JPG", ["upper and lower case"]),
        ("Images/A.jpg", "images/a.jpg", ["upper and lower case"]),
        (CAFE, normalize("NFD", CAFE), ["Unicode form"]),
        (CAFE.upper(), normalize("NFD", CAFE), ["Unicode form", "case"]),
        ("my%20cat.jpg", "my cat.jpg", ["percent-encoding"]),
        ("my cat.jpg", "my%20cat.jpg", ["percent-encoding"]),
        (
            "https://h.org/b/images/my%20cat.jpg?X=1&d2=3#f",
            "images/my cat.jpg",
            ["URLs", "percent", "start"],
        ),
        ("https://h.org/o/images%2Fa.jpg?alt=media", "images/a.jpg", ["URLs", "percent", "start"]),
        ("s3://bucket/images/a.jpg", "images/a.jpg", ["URLs", "start"]),
        ("file:///C:/ds/images/a.jpg", "images/a.jpg", ["URLs", "start"]),
        ("/data/local-files/?d=ds/images/a.jpg", "images/a.jpg", ["URLs", "start"]),
        ("images/a", "images/a.jpg", ["another suffix"]),
        ("images/a.png", "images/a.JPEG", ["another suffix"]),
        ("a.b.png", "a.b.jpg", ["another suffix"]),
    ],
)
def test_names_of_other_machines_are_found_and_reported(entry, name, ways):
    result, reasons = found(entry, "other/b.jpg", name)
    assert result == name
    assert len(reasons) == len(ways)
    for way in ways:
        assert [r for r in reasons if way in r and r.endswith(f": {entry} is {name}")]


def test_each_way_is_reported_once():
    entries = [f"/home/me/images/{n}.jpg" for n in range(9)] + ["images/9.JPG"]
    result = resolve(entries, [f"images/{n}.jpg" for n in range(10)], "ROOT", "list.txt")
    assert len(result.found) == 10 and not result.missing
    assert sorted(p.reason.split(":")[0] for p in result.problems) == [
        "1 path",
        "9 paths",
    ]
    assert {p.file for p in result.problems} == {"list.txt"}


def test_the_longest_end_wins():
    names = ["train/images/a.jpg", "images/a.jpg", "a.jpg", "old/train/a.jpg"]
    assert found("/x/train/images/a.jpg", *names)[0] == "train/images/a.jpg"
    assert found("/x/images/a.jpg", *names)[0] == "images/a.jpg"
    assert found("/x/b/images/a.jpg", *names[2:])[0] == "a.jpg"


def test_exact_form_wins_over_other_forms():
    assert found("x/a.jpg", "a.jpg", "a.JPG", "a.png")[0] == "a.jpg"
    assert found("x/A.jpg", "a.jpg", "a.JPG")[0] is None


def test_ambiguous_entries_name_two_files():
    result = resolve(["a.jpg"], ["one/a.jpg", "two/a.jpg"], "ROOT", "list.txt")
    assert not result.found and not result.problems
    assert "found 2 times in ROOT, as one/a.jpg and two/a.jpg" in result.missing["a.jpg"]


def test_the_folder_that_has_all_entries_decides():
    names = ["train/a.jpg", "train/b.jpg", "val/b.jpg"]
    assert resolve(["a.jpg", "b.jpg"], names, "R", "l").found == {
        "a.jpg": "train/a.jpg",
        "b.jpg": "train/b.jpg",
    }
    # As written at the top: the other may be anywhere.
    assert "b.jpg" in resolve(["a.jpg", "b.jpg"], ["a.jpg", *names[1:]], "R", "l").missing
    both = [*names, "val/a.jpg"]
    assert set(resolve(["a.jpg", "b.jpg"], both, "R", "l").missing) == {"a.jpg", "b.jpg"}


def test_file_of_another_split_is_not_taken():
    assert found("train2017/a.jpg", "val2017/a.jpg")[0] is None
    assert found("valid/images/a.jpg", "train/images/a.jpg")[0] is None
    assert found("validation/a.jpg", "val/a.jpg")[0] == "val/a.jpg"


def test_different_entries_do_not_share_a_file():
    entries = ["/x/setA/1.jpg", "/x/setB/1.jpg", "/x/setA/2.jpg"]
    result = resolve(entries, ["1.jpg", "2.jpg"], "R", "l")
    assert result.found == {entries[2]: "2.jpg"}
    assert "also fits /x/setB/1.jpg" in result.missing[entries[0]]
    assert len(resolve(entries, ["1.jpg", "2.jpg"], "R", "l", one_to_one=False).found) == 3
    # The entry that is written like the file keeps it.
    assert resolve(["1.jpg", "b/1.jpg"], ["1.jpg"], "R", "l").found == {"1.jpg": "1.jpg"}
    same = ["1.jpg", ".\\1.jpg", "/1.jpg"]
    assert set(resolve(same, ["1.jpg"], "R", "l").found) == set(same)


def test_entries_may_be_relative_to_several_folders():
    result = resolve(
        ["b.jpg", "../images/a.jpg"], ["images/a.jpg", "lists/b.jpg"], "R", "l", ("", "lists")
    )
    assert list(result.found.values()) == ["lists/b.jpg", "images/a.jpg"] and not result.problems


def test_whole_ends_only():
    assert found("x/images", "b/images", whole=True)[0] is None
    assert found("x/b/images", "b/images", whole=True)[0] == "b/images"
    assert found("images", "b/images", whole=True)[0] == "b/images"


@pytest.mark.parametrize(
    "entry",
    ["", ".", "..", "/", "C:", "\\", "../../etc/passwd", "a.jpg\0", "http://", "%2e%2e%2fb"],
)
def test_entries_without_a_file_are_missing(entry):
    result = resolve([entry], ["images/a.jpg"], "ROOT", "l")
    assert not result.found and "not found in ROOT" in result.missing[entry]


TEXT = st.text("aB./\\%2fé:~?#", max_size=12) | st.text(max_size=9)


@settings(max_examples=60)
@given(
    st.lists(TEXT, max_size=5), st.sets(st.text("aBé/.jpg%", min_size=1, max_size=8), max_size=6)
)
def test_only_listed_names_are_found(entries, names):
    result = resolve(entries, names, "R", "l")
    assert set(result.found.values()) <= names
    assert set(result.found) | set(result.missing) == set(entries)
    assert not set(result.found) & set(result.missing)
    assert all(entry in result.found for entry in entries if entry in names)


@given(TEXT)
def test_parts_never_lead_up(text):
    parts = path_parts(text)
    assert not {"", ".", ".."} & set(parts) and not any(
        "/" in part or "\\" in part for part in parts
    )


@pytest.mark.parametrize(
    "data",
    [
        b"a.jpg\nb c.jpg\n",
        "\ufeffa.jpg\r\nb c.jpg".encode(),
        "a.jpg\nb c.jpg".encode("utf-16"),
        b"\n  a.jpg\t1 \n\n\tb c.jpg\t-1\n",
        b"\"a.jpg\"\r'b c.jpg'",
    ],
)
def test_lists_of_any_editor_are_read(data):
    assert list_entries(data) == ["a.jpg", "b c.jpg"]
