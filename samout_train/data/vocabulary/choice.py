"""Which vocabulary a text gets: learned from it, or given in a file."""

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
from samout_train.runtime import home_path, refuse_special

_extended: ContextVar[Vocabulary | None] = ContextVar("the vocabulary that is extended", default=None)
VocabularyName = Literal["characters", "bytes", "bpe"]


@dataclass(frozen=True)
class VocabularyChoice:
    """The settings of a vocabulary.

    Args:
        name: `characters` (those that occur), `bytes` or `bpe`.
        vocab_size: Ids of `bpe`; the others have as many as they need.
        given: A vocabulary that is used as it is; None to learn one.
        before: Of `characters`, one that those of the text are appended to; None for none.
    """

    name: VocabularyName
    vocab_size: int
    given: Vocabulary | None
    before: Characters | None = None

    @classmethod
    def of(cls, *, vocabulary: VocabularyName, vocab_size: int, vocabulary_path: str | None) -> "VocabularyChoice":
        """Return the choice that the keys of a data YAML describe.

        Raises:
            ValueError: if a file is given that cannot be used, or for another vocabulary than characters;
                or the package that `bpe` needs is not there.
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
        """Choose the vocabulary that a run has."""
        return cls(cast(VocabularyName, vocabulary.name), len(vocabulary), vocabulary)

    def key(self) -> str:
        """Return what tells the tokens of one choice from those of another."""
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
            texts: Called where the text has to be read; gives it in pieces.
            check_stop: Called a few times a second while pairs are learned; what it raises ends the learning.
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


@contextmanager
def extending(vocabulary: Vocabulary | None) -> Iterator[None]:
    """Let texts that name no vocabulary file take this one, with ids for the characters that it lacks behind its own.

    Byte pairs and bytes can encode any text, and are taken as they are.

    Args:
        vocabulary: What weights were trained with that a run begins with; None for none.
    """
    token = _extended.set(vocabulary)
    try:
        yield
    finally:
        _extended.reset(token)


def vocabulary_from(state: Mapping[str, Any]) -> Vocabulary:
    """Build the vocabulary that a `state_dict` describes.

    Raises:
        ValueError: if no vocabulary has that name.
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
        ValueError: if it is none.
    """
    try:
        refuse_special(home_path(path))
        return vocabulary_from(json.loads(home_path(path).read_text(encoding="utf-8-sig")))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        reason = f"{error!r:.100}"
        if isinstance(error, ValueError):
            reason = f"{error!s:.200}"
        raise ValueError(f"vocabulary_path={path}: is no vocabulary of an export ({reason})") from error
