"""Read what every format has and every tool writes differently: text, ids, flags, numbers.

Both sides of a reference, such as the id of an image and the ``image_id`` of its annotations, are
read by the same function. Otherwise 1, "1" and 1.0 are different ids, and no box finds its image.
"""

from __future__ import annotations

import math
from typing import Any

_TRUE = frozenset(("1", "true", "yes", "t", "y"))
_FALSE = frozenset(("0", "false", "no", "f", "n"))


def decode_text(data: bytes, errors: str = "strict") -> str:
    """Return text in UTF-8 or, with a byte order mark, UTF-16. Raises UnicodeDecodeError."""
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    return data.decode("utf-16" if utf16 else "utf-8-sig", errors)


def read_id(value: Any) -> str | None:
    """Return the key of an id: 1, "1" and 1.0 are one; any other text stays as it is.

    None for what is not an id: null, true, lists, objects, fractions and empty text.
    """
    if isinstance(value, int):
        return None if isinstance(value, bool) else str(value)
    if isinstance(value, str):
        return value if value.strip() else None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return None


def read_flag(value: Any) -> bool | None:
    """Return a flag: 0, 1, true, false, yes or no, as a number or as text in any case.

    None for everything else, which the caller reports.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _TRUE or word in _FALSE:
            return word in _TRUE
        number = read_number(word)
        return bool(number) if number in (0, 1) else None
    return None


def read_number(value: Any) -> float | None:
    """Return a number, also one that is written as text, which may be infinite or not a number.

    None for everything else, such as null, true and "wide".
    """
    if isinstance(value, float):
        return value
    if isinstance(value, bool) or not isinstance(value, int | str):
        return None
    try:
        return float(value)
    except ValueError:
        return None
    except OverflowError:  # an integer of more than 308 digits
        return math.inf if int(value) > 0 else -math.inf
