"""Cut running text into parts that can be tokenized one by one, with the same tokens as the whole text.

A part ends at the end of a word. If no word ends within `LONGEST` characters, as in DNA or base64, the part ends after
`LONGEST` characters, counted from the last end of a word or the last such cut. So each part can be found without the
text before it.
"""

import re
from collections.abc import Iterator
from functools import cache

LONGEST = 1 << 16
WORD_END = r"\S(?=[ \t\r\n])"  # every pre-tokenizer cuts there
LAST_WORD_END = re.compile(f".*{WORD_END}", re.DOTALL)
LINE_END = re.compile(r"\r\n?")


def parts_of_text(text: str) -> Iterator[str]:
    """Yield the parts of a text that begins at the start of a part."""
    return (match[0] for match in _part(LONGEST).finditer(text))


def whole_parts(text: str, *, fold: bool) -> int:
    """Return the number of characters in the whole parts at the start of a text; 0 if more text must be read.

    Args:
        text: Text that begins at the start of a part and continues beyond its end.
        fold: Whether parts are cut from the text with folded line ends.
    """
    if found := LAST_WORD_END.match(text):
        return found.end()
    if not fold:
        return len(text) // LONGEST * LONGEST
    text = text.removesuffix("\r")  # possibly the first half of a line end
    end = len(folded(text)) // LONGEST * LONGEST
    for number, match in enumerate(re.finditer("\r\n", text)):
        if match.start() - number >= end:
            return end + number
    return end + text.count("\r\n")


def folded(text: str) -> str:
    """Return a text in which each line end is a line feed."""
    if "\r" not in text:
        return text
    return LINE_END.sub("\n", text)


@cache
def _part(longest: int) -> re.Pattern[str]:
    return re.compile(f".{{0,{longest - 1}}}{WORD_END}|.{{1,{longest}}}", re.DOTALL)
