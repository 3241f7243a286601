"""What Word writes in the codes of a symbol font, as the Unicode characters that it shows."""

from __future__ import annotations

from typing import Final

_UNKNOWN: Final = "\ufffd"
# Source: https://www.unicode.org/Public/MAPPINGS/VENDORS/ADOBE/symbol.txt; where that has private characters (parts of
# large brackets, trade marks without serifs), those that Unicode has for them by now.
_SYMBOL: Final = {
    **dict(enumerate(" !∀#∃%&∋()∗+,−./0123456789:;<=>?≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_", 0x20)),
    **dict(enumerate("‾αβχδεφγηιϕκλµνοπθρστυϖωξψζ{|}∼", 0x60)),
    **dict(enumerate("€ϒ′≤⁄∞ƒ♣♦♥♠↔←↑→↓°±″≥×∝∂•÷≠≡≈…⏐⎯↵ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉", 0xA0)),
    **dict(enumerate("∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓◊\u2329®©™∑⎛⎜⎝⎡⎢⎣⎧⎨⎩⎪", 0xD0)),
    **dict(enumerate("\u232a∫⌠⎮⌡⎞⎟⎠⎤⎥⎦⎫⎬⎭", 0xF1)),
}
# Of Wingdings, what stands in texts: arrows (Word makes one of `-->`), numbers in circles, bullets and ticks.
# Source: the Unicode Consortium's document L2/12-368, with the plain character for each arrow, number and tick.
_WINGDINGS: Final = {
    **{0x28: "☎", 0x2A: "✉", 0x46: "☞", 0x4A: "☺", 0x4B: "😐", 0x4C: "☹"},
    **{0x6C: "●", 0x6E: "■", 0x6F: "□", 0x71: "❑", 0x72: "❒", 0x75: "◆", 0x76: "❖", 0x78: "☒"},
    **dict(enumerate("⓪①②③④⑤⑥⑦⑧⑨⑩⓿❶❷❸❹❺❻❼❽❾❿", 0x80)),
    **{0x9E: "·", 0x9F: "•", 0xA7: "▪", 0xA8: "□", 0xD8: "➢"},
    **dict(enumerate("←→↑↓↖↗↙↘←→↑↓↖↗↙↘⇦⇨⇧⇩⬄⇳", 0xDF)),
    **dict(enumerate("✗✓☒☑", 0xFB)),
}
_WINGDINGS_2: Final = {**dict(enumerate("✗✓☒☑☒☒", 0x4F)), 0xA3: "□"}
_FONTS: Final[dict[str, dict[int, str]]] = {
    "symbol": _SYMBOL,
    "wingdings": _WINGDINGS,
    "wingdings 2": _WINGDINGS_2,
    "wingdings 3": {},
    "webdings": {},
}
# The first byte of a code of the font itself, as it is and moved into the private use area; others are Unicode.
_OWN: Final = (0x00, 0xF0)


def symbol(*, font: str, code: str) -> str:
    """Return the character that a hexadecimal code shows in a font, and U+FFFD where that is not known."""
    try:
        number = int(code, 16)
        if number >> 8 in _OWN:
            return _FONTS.get(font.lower(), {}).get(number & 0xFF, _UNKNOWN)
        return chr(number) if chr(number).isprintable() else _UNKNOWN
    except (ValueError, OverflowError):
        return _UNKNOWN


def shown(*, text: str, font: str) -> str:
    """Return the characters that text shows in a font."""
    table = _FONTS.get(font.lower())
    if table is None:
        return text
    return "".join(
        character
        if character.isspace() or ord(character) >> 8 not in _OWN
        else table.get(ord(character) & 0xFF, _UNKNOWN)
        for character in text
    )
