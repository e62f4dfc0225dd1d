"""The project's texts avoid certain wordings, and docstrings of functions open with a verb.

CONTRIBUTING.md gives the reasons.
"""

import ast
import bisect
import re
import subprocess
from functools import cache

import pytest

from tests.conftest import ROOT

# Pattern over the words of a text -> what to write instead.
RULED_OUT = {
    r"mend(s|ed|ing)?": "fix, repair",
    r"anew": "from scratch, again",
    r"(go|goes|going|went|gone) on": "continue, resume",
    r"sound(ness)?": "valid, intact",
    r"told|tells": "reported, logged",
    r"lies|lie|lain": "is in, is stored in",
    r"asks|wants|hears": "requests, requires, needs, receives",
    r"(ask|want) (nothing|nobody)|(nothing|nobody) (ask|want)": "unused, not needed",
    r"so no (?!other|one)[a-z]+": "not a Y (X not found)",
    r"(?<!there )(?<!what )(is|are|was|were) no (?!longer|one|better|worse|more|less|slower|faster|"
    r"larger|smaller|shorter)[a-z]+": "is not a ..., there is no ...",
    r"whoever|nobody|somebody": "users, no one, or the actor's name",
    r"(?<!at )most a": "maximum per ...",
    r"(its|their) kind": "and similar",
    r"meanwhile|by then": "while ..., until ...",
    r"cannot be had": "is not available, could not be fetched",
    r"a must|at will|if so wished": "required, optional",
    r"(what|still) waits": "queued, still queued",
    r"takes? no more|did not take everything": "rejected, did not accept all records",
    r"in vain": "when retries are exhausted",
    r"the truth|truthful(ly)?": "accurate",
    r"given up": "skipped",
    r"house": "package, module, project",
    r"at leisure|to the letter|put(s|ting)? up with|alike|of its own|by itself": "plainer words",
}

# (file, wording as it stands there) -> why it is right there.
ALLOWED = {
    ("CHANGELOG.md", "mended"): "tells users what the kind in old manifests is called now",
    ("pipeline/data/shards/problems.py", "mended"): "the kind in old manifests",
    ("tests/test_former_artifacts.py", "mended"): "the kind in the archived manifest",
}

# First words of a function's docstring that are not verbs in the imperative, besides words that end
# like a third person, a participle or a plural.
NOT_VERBS = re.compile(
    r"What|Where|Whether|Why|How|Who|Whose|Whom|Which|When|While|If|As|At|By|For|From|In|Of|On|To|"
    r"With|Without|The|A|An|One|Two|Both|All|Any|Each|Every|No|Not|Only|Same|Such|Another|Other|Its|"
    r"Their|This|That|These|Those|It|They|There|Here|Like|Once|Until|After|Before|\w+(s|ing|ed)"
)
VERBS = re.compile(
    r"Pass|(De)?[Cc]ompress|Process|Press|Cross|Focus|Access|Address|Bring|Embed|Feed|Seed"
)

SUFFIXES = (".py", ".md", ".yaml", ".yml", ".toml", ".cff")
NAMES = ("Makefile", "run", "Dockerfile", ".gitignore", ".rayignore", "constraints.txt")


@cache
def tracked_texts() -> dict[str, str]:
    """Return the project's own texts by path, without this file."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    names = {name for name in done.stdout.splitlines() if (ROOT / name).is_file()}
    own = {name for name in names if name.endswith(SUFFIXES) or name.split("/")[-1] in NAMES}
    own.discard("tests/test_words.py")
    return {name: (ROOT / name).read_text("utf-8") for name in sorted(own)}


def wordings(text: str) -> list[tuple[int, str, str]]:
    """Return (line, wording, what to write instead) of every ruled-out wording in a text."""
    words, starts, lines = words_of(text)
    found = []
    for pattern, instead in RULED_OUT.items():
        for match in re.finditer(rf"(?<![\w-])(?:{pattern})(?![\w-])", words, re.IGNORECASE):
            line = lines[bisect.bisect_right(starts, match.start()) - 1]
            found.append((line, match[0].lower(), instead))
    return sorted(found)


def words_of(text: str) -> tuple[str, list[int], list[int]]:
    """Return a text as words joined by single spaces, with the offset and line of each word.

    Line breaks, comment marks, quotation marks, the seams of string literals and the underscores of
    identifiers are gaps between words. Punctuation counts as a word.
    """
    text = re.sub(r"""["'][ \t]*\n[ \t]*[frb]{0,2}["']""", "\n", text)
    words, starts, lines, length, line = [], [], [], 0, 1
    for token in re.findall(r"""\n|[A-Za-z]+(?:['-][A-Za-z]+)*|[^\sA-Za-z#_"'`>*]""", text):
        if token == "\n":
            line += 1
            continue
        words.append(token)
        starts.append(length)
        lines.append(line)
        length += len(token) + 1
    return " ".join(words), starts, lines


def opening_faults(source: str) -> list[tuple[int, str]]:
    """Return (line, first word) of every function docstring that does not open with a verb.

    Tests are exempt: their docstrings explain a case.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("test_"):
            docstring = ast.get_docstring(node)
            if docstring is not None and not opens_with_verb(docstring):
                found.append((node.body[0].lineno, docstring.split()[0]))
    return found


def opens_with_verb(docstring: str) -> bool:
    """Return whether the first word may be a verb in the imperative."""
    word = re.match(r"[A-Z][a-z-]+(?=[\s.:,]|$)", docstring)
    return bool(word and (VERBS.fullmatch(word[0]) or not NOT_VERBS.fullmatch(word[0])))


def test_ruled_out_wordings_stay_out() -> None:
    faults = [
        f"{name}:{line}: {wording!r}; write: {instead}"
        for name, text in tracked_texts().items()
        for line, wording, instead in wordings(text)
        if (name, wording) not in ALLOWED
    ]
    assert not faults, "\n".join(faults)


def test_allowed_wordings_are_still_there() -> None:
    texts = tracked_texts().items()
    used = {(name, wording) for name, text in texts for _, wording, _ in wordings(text)}
    assert ALLOWED.keys() <= used


def test_function_docstrings_open_with_a_verb() -> None:
    faults = [
        f"{name}:{line}: {word}"
        for name, text in tracked_texts().items()
        if name.endswith(".py")
        for line, word in opening_faults(text)
    ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    "text",
    [
        "the run goes on",
        "the run goes\n    # on",
        'f"the run goes "\n    f"on"',
        "def test_run_goes_on():",
        "X is no folder",
        "Begins anew.",
        "MENDED = 1",
        "the truth",
    ],
)
def test_ruled_out_wording_is_found(text: str) -> None:
    assert wordings(text)


@pytest.mark.parametrize(
    "text",
    [
        "there is no folder",
        "is no longer used",
        "the ground truth",
        "recommend",
        "at most a few",
        "so. No file",
    ],
)
def test_plain_wording_passes(text: str) -> None:
    assert wordings(text) == []


@pytest.mark.parametrize(
    ("docstring", "right"),
    [
        ("Return the sum.", True),
        ("Process a batch.", True),
        ("Whether it is open.", False),
        ("The sum.", False),
        ("Returns the sum.", False),
        ("Names of all files.", False),
        ("(line, module) of every import.", False),
        ("``None`` if there is none.", False),
    ],
)
def test_docstring_opening_is_judged(docstring: str, right: bool) -> None:
    assert opens_with_verb(docstring) is right
