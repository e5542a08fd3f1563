"""Read the character vocabularies that the published SamOut scripts pickled, without running code.

A file holds a list of tokens by id, or a dictionary with that list, `voc`, and spellings for rare characters, `voc0`:
the published scripts write a rare character as several tokens, such as `<|pos_0_4|>`.

Source: `gen_voc` and `gen_sft_single_data_align` of the published SamOut V1 training script.
"""

import pickle
import pickletools
import warnings
from pathlib import Path
from typing import Any

from samout_train.data.vocabulary.base import Characters
from samout_train.runtime import home_path, require_regular_file

LARGEST_BYTES = 64 << 20
MEMO = ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "GET", "BINGET", "LONG_BINGET")
ALLOWED = {
    *("PROTO", "FRAME", "STOP", "MARK", "POP", "POP_MARK", "DUP", *MEMO),
    *("EMPTY_LIST", "LIST", "APPEND", "APPENDS", "EMPTY_DICT", "DICT", "SETITEM", "SETITEMS"),
    *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
}
CODE = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "BUILD", "EXT1", "EXT2", "EXT4")


class VocabularyFileError(ValueError):
    """A file cannot be read as a vocabulary; `reason` is the cause, without the path."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"vocabulary_path={self.path}: cannot be used: {self.reason}"


def read_published_vocabulary(path: str | Path) -> Characters:
    """Read a pickled character vocabulary without running code.

    Args:
        path: The file, such as `total_voc.pkl`.

    Raises:
        VocabularyFileError: if it holds anything but lists, dictionaries, strings and integers, or is not a vocabulary.
    """
    path = home_path(path)
    try:
        content = _unpickled(path)
        _require_plain_types(content)
        tokens, spelled = _tokens(content)
        place: dict[str, int] = {}
        for index, token in enumerate(tokens):
            place.setdefault(token, index)  # the first of equal tokens, as list.index does
        spellings: dict[str, list[int]] = {}
        for text, parts in spelled.items():
            spellings[text] = [place.get(token, -1) for token in parts]
        return Characters(tokens, spellings)
    except ValueError as error:
        raise VocabularyFileError(path, str(error)) from error


def _unpickled(path: Path) -> Any:
    try:
        require_regular_file(path)
        size = path.stat().st_size
        if size > LARGEST_BYTES:
            raise ValueError(f"it has more than {LARGEST_BYTES >> 20} MB")
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(error.strerror or str(error)) from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in files that are not pickles
            _require_allowed_operations(content)
            return pickle.loads(content)  # safe: no operation in it can run code
    # Errors of a damaged pickle; each means that the file cannot be read.
    except (pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f"no pickle of lists, dictionaries, texts and whole numbers ({_short(error)})") from error
    except (MemoryError, RecursionError) as error:
        raise ValueError(f"no pickle of a vocabulary ({type(error).__name__})") from error


def _require_allowed_operations(content: bytes) -> None:
    """Raise UnpicklingError unless every operation of a pickle is allowed; no operation is executed."""
    try:
        for operation, argument, _ in pickletools.genops(content):
            if operation.name in CODE:
                raise pickle.UnpicklingError("it would run code")
            if operation.name not in ALLOWED:
                raise pickle.UnpicklingError(f"it holds a {operation.name.lower()}")
            if operation.name in MEMO and isinstance(argument, int) and argument > len(content):
                raise pickle.UnpicklingError("it is damaged")
    except ValueError as error:
        raise pickle.UnpicklingError(_short(error)) from error


def _short(error: Exception) -> str:
    return " ".join(repr(str(error))[1:-1].split())[:100]


def _require_plain_types(content: Any) -> None:
    seen: set[int] = set()  # a list may hold itself
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if type(part) not in (list, dict, str, int):
            raise ValueError(
                f"it holds a {type(part).__name__}; only lists, dictionaries, texts and whole numbers may be"
            )
        if isinstance(part, list | dict) and id(part) not in seen:
            seen.add(id(part))
            waiting += part
            if isinstance(part, dict):
                waiting += part.values()


def _tokens(content: Any) -> tuple[list[str], dict[str, list[str]]]:
    tokens, spelled = content, {}
    if isinstance(content, dict):
        tokens, spelled = content.get("voc"), content.get("voc0", {})
    if not _is_list_of_texts(tokens):
        raise ValueError('it is neither a list of texts nor a dictionary with such a list as "voc"')
    problem = 'its "voc0" is no dictionary from a character to a list of tokens'
    if not isinstance(spelled, dict):
        raise ValueError(problem)
    for text, parts in spelled.items():
        if not (isinstance(text, str) and len(text) == 1 and _is_list_of_texts(parts)):
            raise ValueError(problem)
    return tokens, spelled


def _is_list_of_texts(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(item, str) for item in content)
