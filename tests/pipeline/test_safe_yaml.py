"""YAML from any source: plain values, one-line errors, and a limit on what aliases expand to."""

import re
from itertools import pairwise

import pytest

from pipeline.safe_yaml import YamlError, load_yaml
from tests.conftest import ROOT

NAMES = [*pairwise("abcdefg")]
LISTS = "\n".join(f"{b}: &{b} [{f'*{a}, ' * 10}]" for a, b in NAMES)
MAPPINGS = "\n".join(f"{n + 1}: &{n + 1} {{x: *{n}, y: *{n}}}" for n in range(30))
# Merging copies the pairs of each alias while the document is read.
MERGES = "\n".join(f"- &{b} {{<<: [{f'*{a}, ' * 10}]}}" for a, b in NAMES)


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a [{', '.join('x' * 10)}]\n{LISTS}",
        f"0: &0 {{x: 1}}\n{MAPPINGS}",
        f"- &a {{x: 1, y: 2}}\n{MERGES}",
        f"a: &a {'x' * 10_000}\nb: [{'*a, ' * 500}]",
    ],
)
def test_aliases_that_multiply_the_content_are_rejected(text: str) -> None:
    assert len(text) < 15_000
    with pytest.raises(YamlError, match=r"its aliases \(\*name\) stand for more than"):
        load_yaml(text)


@pytest.mark.parametrize("text", ["&a [*a]", "a: &a {b: [*a]}"])
def test_alias_of_itself_is_rejected(text: str) -> None:
    with pytest.raises(YamlError, match="line 1: the value contains an alias of itself"):
        load_yaml(text)


@pytest.mark.parametrize(
    "text",
    ["[", "[" * 5000, "a: !!python/object:os.system {}", "a: 2020-99-99", b"\xff", "9" * 5000],
)
def test_invalid_text_is_one_line(text: str | bytes) -> None:
    with pytest.raises(YamlError) as caught:
        load_yaml(text)
    assert "\n" not in str(caught.value)


def test_ordinary_aliases_and_merges_are_read() -> None:
    text = "base: &base {lr: 0.1, sizes: [1, 2]}\ntrain: {<<: *base, epochs: 3}\nagain: *base"
    base = {"lr": 0.1, "sizes": [1, 2]}
    assert load_yaml(text) == {"base": base, "train": {**base, "epochs": 3}, "again": base}
    assert load_yaml("") is None


@pytest.mark.parametrize("part", ["?,", "a:,", "a,", "[],", "[?],"])
def test_text_without_aliases_is_never_over_the_limit(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.safe_yaml.MAX_ADDED_BY_ALIASES", 0)
    assert len(load_yaml(f"[{part * 500}]")) == 500


def test_scalars_below_a_key_stay_text() -> None:
    names = [
        "no",
        "on",
        "007",
        "0x1F",
        "1_000",
        "12:30",
        "2020-01-01",
        "null",
        "~",
        "1e3",
        ".nan",
        "=",
    ]
    text = f"names: [{', '.join(names)}, 'yes', \"no\", traffic light]\nnc: 15\non: no"
    tree = load_yaml(text, ["names"])
    assert tree == {"names": [*names, "yes", "no", "traffic light"], "nc": 15, True: False}
    assert load_yaml(text.replace(" =,", ""))["names"][:3] == [False, True, 7]
    mapping = load_yaml("names:\n  0: no\n  1:\n  2: {a: 1}\n", ["names"])
    assert mapping == {"names": {"0": "no", "1": "", "2": {"a": "1"}}}
    assert load_yaml("x: &a {1: no}\nnames: {<<: *a, 2: on}", ["names"])["names"] == {
        "1": "no",
        "2": "on",
    }


def test_repeated_keys_are_rejected_where_scalars_are_text() -> None:
    with pytest.raises(YamlError, match="line 1: the key 0 is repeated"):
        load_yaml("names: {0: cat, 0: dog}", ["names"])


def test_aliases_are_rejected_before_the_rest_is_read() -> None:
    text = f"a: &a {'x' * 400_000}\nnames: [{'*a, ' * 150_000}"  # the end would be an error, too
    with pytest.raises(YamlError, match="aliases"):
        load_yaml(text)


def test_all_yaml_is_read_by_this_module() -> None:
    files = [path for layer in ("pipeline", "jobs") for path in (ROOT / layer).rglob("*.py")]
    reads = re.compile(r"yaml\.(safe_|full_|unsafe_)?load|SafeLoader")
    found = [path.name for path in files if reads.search(path.read_text("utf-8"))]
    assert found == ["safe_yaml.py"]
