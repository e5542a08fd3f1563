"""Choose the vocabulary of a text: learned from it, or read from a file."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from samout_train.data.vocabulary.base import Bytes, Characters, Vocabulary
from samout_train.data.vocabulary.bpe import BytePairs
from samout_train.data.vocabulary.published import read_published_vocabulary
from samout_train.runtime import home_path, require_regular_file

_extended: ContextVar[Vocabulary | None] = ContextVar("the vocabulary that is extended", default=None)
VocabularyName = Literal["characters", "bytes", "bpe"]


@dataclass(frozen=True)
class VocabularyChoice:
    """The settings of a vocabulary.

    Args:
        name: `characters` (those of the text), `bytes` or `bpe`.
        vocab_size: Number of ids of `bpe`; the other vocabularies have as many as they need.
        given: A vocabulary to use unchanged; None to learn one.
        before: With `characters`, a vocabulary to extend by the characters of the text, or None.
    """

    name: VocabularyName
    vocab_size: int
    given: Vocabulary | None
    before: Characters | None = None

    @classmethod
    def of(cls, *, vocabulary: VocabularyName, vocab_size: int, vocabulary_path: str | None) -> "VocabularyChoice":
        """Return the choice for the keys of a data YAML.

        Raises:
            ValueError: if the given file cannot be used or has another kind of vocabulary, or the package for `bpe` is
                missing.
        """
        if vocabulary == BytePairs.name and importlib.util.find_spec("tokenizers") is None:
            raise ValueError("vocabulary=bpe: needs the package tokenizers: pip install tokenizers")
        if vocabulary_path is None:
            before = _extended.get()
            if before is None or before.name != vocabulary:
                return cls(vocabulary, vocab_size, None)
            if isinstance(before, Characters):
                return cls(vocabulary, vocab_size, None, before)
            return cls(vocabulary, vocab_size, before)
        given: Vocabulary
        if vocabulary_path.endswith(".json"):
            given = read_vocabulary_file(vocabulary_path)
        else:
            given = read_published_vocabulary(vocabulary_path)
        if given.name != vocabulary:
            raise ValueError(f"vocabulary={vocabulary}: vocabulary_path is one of {given.name}: set vocabulary to that")
        return cls(vocabulary, vocab_size, given)

    @classmethod
    def of_run(cls, vocabulary: Vocabulary) -> "VocabularyChoice":
        """Return the choice of a run's vocabulary, unchanged."""
        return cls(cast(VocabularyName, vocabulary.name), len(vocabulary), vocabulary)

    def key(self) -> str:
        """Return a key that is different for choices with different tokens."""
        if self.given is not None:
            return hashlib.sha256(json.dumps(self.given.state_dict(), sort_keys=True).encode()).hexdigest()
        if self.before is not None:
            digest = hashlib.sha256(json.dumps(self.before.state_dict(), sort_keys=True).encode()).hexdigest()
            return f"{self.name} behind {digest}"
        if self.name == BytePairs.name:
            return f"{self.name} {self.vocab_size}"
        return self.name

    def learn(self, texts: Callable[[], Iterable[str]], *, check_stop: Callable[[], None] = lambda: None) -> Vocabulary:
        """Return the vocabulary for a text.

        Args:
            texts: Returns the text in pieces; called only if the choice needs the text.
            check_stop: Called a few times a second while pairs are learned; an exception from it ends the learning.
        """
        if self.given is not None:
            return self.given
        if self.name == BytePairs.name:
            return BytePairs.of_text(texts(), self.vocab_size, check_stop=check_stop)
        if self.name == Bytes.name:
            return Bytes()
        learned = Characters.of_text(texts())
        if self.before is None:
            return learned
        return self.before.extended(learned.tokens)


def vocabulary_of(settings: Mapping[str, Any]) -> VocabularyChoice:
    """Return the choice of the vocabulary from the keys of a data YAML.

    Raises:
        ValueError: if the given vocabulary file cannot be used.
    """
    return VocabularyChoice.of(
        vocabulary=settings["vocabulary"],
        vocab_size=settings["vocab_size"],
        vocabulary_path=settings["vocabulary_path"],
    )


@contextmanager
def extending(vocabulary: Vocabulary | None) -> Iterator[None]:
    """Make texts without a vocabulary file use this vocabulary, extended by the characters that it lacks.

    Byte pairs and bytes can encode any text and stay unchanged.

    Args:
        vocabulary: The vocabulary of a run's initial weights, or None.
    """
    token = _extended.set(vocabulary)
    try:
        yield
    finally:
        _extended.reset(token)


def vocabulary_from(state: Mapping[str, Any]) -> Vocabulary:
    """Build a vocabulary from its `state_dict`.

    Raises:
        ValueError: if the name is unknown.
    """
    if state.get("name") == Characters.name:
        return Characters(state["tokens"], state["spellings"])
    if state.get("name") == BytePairs.name:
        return BytePairs(state["tokenizer"])
    if state.get("name") == Bytes.name:
        return Bytes()
    raise ValueError(f"vocabulary name ({state.get('name')!r}) must be characters, bytes or bpe")


def read_vocabulary_file(path: str | Path) -> Vocabulary:
    """Read the `vocabulary.json` of an export.

    Raises:
        ValueError: if it is not such a file.
    """
    try:
        require_regular_file(home_path(path))
        return vocabulary_from(json.loads(home_path(path).read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{error!r:.100}"
        if isinstance(error, ValueError):
            reason = f"{error!s:.200}"
        raise ValueError(f"vocabulary_path={path}: is not the vocabulary of an export ({reason})") from error
