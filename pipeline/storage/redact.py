"""Redaction of secrets in everything that leaves the process: messages, logs, records, results.

`mask` reads whole diffs, so each pattern takes linear time. Masking a text twice has no effect.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

MAX_LENGTH = 300  # of an error in a message
_HIDDEN = "***"
_QUERY = re.compile(r"\?\S+")

# Names whose values are secrets wherever they are assigned: "password = x", "db_password": "x".
_NAMES = (
    r"(?:password|passwd|passphrase|pwd|secret|token|private[_-]?key|secret[_-]?(?:access[_-]?)?key"
    r"|(?:api|account|shared[_-]?access|access)[_-]?key(?:[_-]?id)?)"
)
# In a query or a connection string further names are unambiguous.
_PARAMETER_NAMES = (
    r"[\w.-]{0,64}?(?:passw|passphrase|pwd|token|secret|key|signature|sig|credential|odbc_connect)"
    r"[\w.-]{0,64}"
)
_ASSIGNED = rf"{_NAMES}['\"]?[ \t]{{0,8}}(?:=>?|:)[ \t]{{0,8}}b?"
_BARE = r"(?!(?:str|int|float|bool|bytes|None|null|true|false)\b)[^\s'\",;&(){}\[\]<>]"
_PATTERNS = (
    re.compile(
        r"(?P<keep>-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----).{1,16384}?"
        r"(?=-----END [A-Z ]{0,40}PRIVATE KEY-----)",
        re.S,
    ),
    re.compile(rf"(?P<keep>[?&;]{_PARAMETER_NAMES}=)(?:\{{[^{{}}\n]+\}}|[^&;\s'\"]+)", re.I),
    # NAME = "x", "NAME": "x", with the quotes kept, so that JSON and code stay valid.
    re.compile(rf"(?P<keep>{_ASSIGNED}\")(?:[^\"\\\n]|\\.)+(?=\")", re.I),
    re.compile(rf"(?P<keep>{_ASSIGNED}')(?:[^'\\\n]|\\.)+(?=')", re.I),
    # NAME=x, PWD={x}, and NAME: x where it ends the line.
    re.compile(rf"(?P<keep>{_NAMES}[ \t]{{0,8}}=[ \t]{{0,8}})(?:\{{[^{{}}\n]+\}}|{_BARE}+)", re.I),
    re.compile(rf"(?P<keep>{_NAMES}:[ \t]{{1,8}}){_BARE}+(?=[ \t]*$)", re.I | re.M),
    re.compile(rf"(?P<keep>{_NAMES}%3D)(?:[^%&;\s'\"]|%(?!3B|26))+", re.I),
    re.compile(
        r"(?P<keep>authorization['\"]?[ \t]{0,8}[:=][ \t]{0,8}b?['\"]?(?:[a-z]{1,20} )?)[^\s'\",]+",
        re.I,
    ),
    re.compile(r"(?P<keep>\bbearer )[\w.~+/=-]{8,}", re.I),
    # Tokens with the prefix of their issuer: GitHub, GitLab, Hugging Face, Slack, Databricks, JWT.
    re.compile(
        r"(?P<keep>)\b(?:gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|hf_\w{20,}"
        r"|xox[abprs]-[\w-]{10,}|dapi[0-9a-f]{32}|eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+)"
    ),
)
# A URI that became a path has one slash. A password may contain "@" or, where it was not escaped,
# "/", as keys of AWS do.
_USER_INFO = re.compile(r"(:/{1,2})([^/\s:@]{0,512})(:(?:[^/\s]+|(?:(?!:/)[^\s'\"<>])+))?@")
_SECRET_KEY = re.compile(rf".*{_NAMES}", re.I)


def mask(text: str) -> str:
    """Return the text with each secret replaced by ``***``.

    Secrets are passwords and tokens in URIs and connection strings, the values of fields, settings
    and headers whose names say so, private keys, and tokens with a known prefix.
    """
    text = _USER_INFO.sub(_mask_user_info, text)
    for pattern in _PATTERNS:
        text = pattern.sub(rf"\g<keep>{_HIDDEN}", text)
    return text


def _mask_user_info(match: re.Match[str]) -> str:
    slashes, user, password = match.groups()
    if password:
        return f"{slashes}{user}:{_HIDDEN}@"
    return f"{slashes}{_HIDDEN}@" if slashes == "://" else match[0]  # models:/NAME@ALIAS


def mask_tree(value: Any) -> Any:
    """Return parsed JSON with the secrets in its strings masked, and in fields named as secrets."""
    if isinstance(value, Mapping):
        return {
            key: _HIDDEN
            if isinstance(item, str) and _SECRET_KEY.fullmatch(str(key))
            else mask_tree(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_tree(item) for item in value]
    return mask(value) if isinstance(value, str) else value


def error_line(error: object) -> str:
    """Return an error's message as one short line without secrets, not even the query of a URL."""
    text = " ".join(str(error).split()) or type(error).__name__
    return _QUERY.sub("?...", mask(text))[:MAX_LENGTH]


def first_line(error: object) -> str:
    """Return the first line of an error's message, masked and shortened."""
    lines = mask(str(error)).splitlines() or [type(error).__name__]
    return lines[0][:MAX_LENGTH]


def mask_output() -> None:
    """Mask the records of all loggers of this process, and the traceback of an uncaught error."""
    logging.setLogRecordFactory(_MaskedRecord)
    sys.excepthook = _print_masked_traceback


class _MaskedRecord(logging.LogRecord):
    """A log record whose message and traceback are masked, whatever handler formats it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            lines = traceback.format_exception(*self.exc_info)
            self.exc_text = mask("".join(lines)).rstrip("\n")  # formatters use it if it is set

    def getMessage(self) -> str:
        """Return the message with its arguments, masked."""
        return mask(super().getMessage())


def _print_masked_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if sys.stderr is not None:
        sys.stderr.write(mask("".join(traceback.format_exception(kind, error, trace))))
