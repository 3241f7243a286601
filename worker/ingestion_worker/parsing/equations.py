"""Word's equations, which are trees, as one line of text that says the same: `(a+b)/2`, `10^6`, `√(x)`, `∑_(i=1)^n i`.

No library that reads them writes anything but LaTeX, which nobody searches for.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

_SCRIPTS: Final = {"sub": "_", "sup": "^", "lim": "_"}
_SIMPLE: Final = re.compile(r"\w|\d[\d.,]*")
_OVERLINE, _UNDERLINE = "\u0305", "\u0332"

# Returns what a reader sees of an element that holds text, "" of one that is not shown, and None of any other.
Read = Callable[[Any], str | None]


def linear(*, equation: Any, read: Read) -> str:
    """Return an equation as one line of text.

    Args:
        equation: the element, with all that is in it.
        read: how the text in it is read.

    Source: ECMA-376 part 1, 22.1 (Math); the notation is that of UnicodeMath, https://www.unicode.org/notes/tn28/
    """
    return _row(equation, read)


def local_name(element: Any) -> str:
    """Return an element's name without its namespace."""
    return str(element.tag).rpartition("}")[2]


def _row(element: Any, read: Read) -> str:
    """Return what stands in an element, one after the other."""
    line, structure = "", False
    for child in element:
        write = _STRUCTURES.get(local_name(child))
        seen = read(child)
        text = seen if seen is not None else write(child, read) if write else _row(child, read)
        # Without a sign between them `2` and `1/2` would be `21/2`.
        if (structure or write) and line[-1:].isalnum() and text[:1].isalnum():
            line += " "
        line += text
        structure = write is not None if text else structure
    return line


def _accent(element: Any, read: Read) -> str:
    return _base(_part(element, "e", read)) + _character(element, "chr", "\u0302")


def _bar(element: Any, read: Read) -> str:
    over = _character(element, "pos", "bot") == "top"
    return _base(_part(element, "e", read)) + (_OVERLINE if over else _UNDERLINE)


def _delimited(element: Any, read: Read) -> str:
    inner = _character(element, "sepChr", "|").join(_parts(element, "e", read))
    return _character(element, "begChr", "(") + inner + _character(element, "endChr", ")")


def _fraction(element: Any, read: Read) -> str:
    # Without a bar it is, between parentheses, a binomial.
    line = "¦" if _character(element, "type", "bar") == "noBar" else "/"
    return _operand(_part(element, "num", read)) + line + _operand(_part(element, "den", read))


def _function(element: Any, read: Read) -> str:
    return f"{_part(element, 'fName', read)} {_part(element, 'e', read)}"


def _grouped(element: Any, read: Read) -> str:
    # A brace over or under something, or an arrow with something over or under it.
    return f"{_character(element, 'chr', '⏟')}({_part(element, 'e', read)})"


def _upper_limit(element: Any, read: Read) -> str:
    return _base(_part(element, "e", read)) + _script("^", _part(element, "lim", read))


def _matrix(element: Any, read: Read) -> str:
    return "; ".join(", ".join(_parts(row, "e", read)) for row in element if local_name(row) == "mr")


def _equations(element: Any, read: Read) -> str:
    # What follows `&` is aligned, but no reader sees it.
    return "; ".join(_parts(element, "e", read)).replace("&", "")


def _n_ary(element: Any, read: Read) -> str:
    bounds = _scripts(element, read)
    return _character(element, "chr", "∫") + bounds + (" " if bounds else "") + _part(element, "e", read)


def _phantom(element: Any, read: Read) -> str:
    return "" if _character(element, "show", "1") in ("0", "off", "false") else _part(element, "e", read)


def _root(element: Any, read: Read) -> str:
    degree, inner = _part(element, "deg", read), _part(element, "e", read)
    return f"({inner})^(1/{_operand(degree)})" if degree.strip() else f"√({inner})"


def _scripted(element: Any, read: Read) -> str:
    return _base(_part(element, "e", read)) + _scripts(element, read)


def _scripted_before(element: Any, read: Read) -> str:
    return f"{_scripts(element, read)} {_part(element, 'e', read)}"


_STRUCTURES: Final[dict[str, Callable[[Any, Read], str]]] = {
    "acc": _accent,
    "bar": _bar,
    "d": _delimited,
    "eqArr": _equations,
    "f": _fraction,
    "func": _function,
    "groupChr": _grouped,
    "limLow": _scripted,
    "limUpp": _upper_limit,
    "m": _matrix,
    "nary": _n_ary,
    "phant": _phantom,
    "rad": _root,
    "sPre": _scripted_before,
    "sSub": _scripted,
    "sSubSup": _scripted,
    "sSup": _scripted,
}


def _scripts(element: Any, read: Read) -> str:
    return "".join([_script(sign, _part(element, name, read)) for name, sign in _SCRIPTS.items()])


def _script(sign: str, text: str) -> str:
    return sign + _operand(text) if text.strip() else ""


def _operand(text: str) -> str:
    return text if _SIMPLE.fullmatch(text) else f"({text})"


def _base(text: str) -> str:
    """Return what a script or an accent belongs to, which may be a name such as `lim`, or nothing."""
    whole = text.isalnum() or (text[:1] in "([{|" and text[-1:] in ")]}|")
    return text if whole or not text.strip() else f"({text})"


def _part(element: Any, name: str, read: Read) -> str:
    return "".join(_parts(element, name, read))


def _parts(element: Any, name: str, read: Read) -> list[str]:
    return [_row(child, read) for child in element if local_name(child) == name]


def _character(element: Any, name: str, default: str) -> str:
    """Return what the properties of a structure say; without a value a character is none."""
    for properties in element:
        if local_name(properties) == f"{local_name(element)}Pr":
            for found in properties:
                if local_name(found) == name:
                    return next(iter(found.attrib.values()), "")
    return default
