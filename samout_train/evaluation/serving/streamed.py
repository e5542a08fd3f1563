"""Turn tokens into text as they are drawn: in whole characters, up to the first stop text."""

import codecs
from collections.abc import Sequence

from samout_train.data import Vocabulary


class StreamedText:
    """Turn tokens into text that can be sent.

    Args:
        vocabulary: Vocabulary of the tokens.
        stops: The text ends before the first of these.

    Attributes:
        has_ended: Whether one of `stops` appeared.
    """

    def __init__(self, vocabulary: Vocabulary, stops: Sequence[str]) -> None:
        self._vocabulary, self._stops = vocabulary, list(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.has_ended = False

    def add(self, index: int) -> str:
        """Return the text that can be sent after this token; a possible beginning of a stop text is held back."""
        return self._released(self._decoder.decode(self._vocabulary.to_bytes([index])))

    def end(self) -> str:
        """Return the rest of the text."""
        if self.has_ended:
            return ""
        ready = self._released(self._decoder.decode(b"", final=True))
        if not self.has_ended:
            ready += self._held
        self._held = ""
        return ready

    def _released(self, text: str) -> str:
        if self.has_ended:
            return ""
        self._held += text
        places = [place for place in map(self._held.find, self._stops) if place >= 0]
        if places:
            self.has_ended = True
            return self._held[: min(places)]
        waits = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._held)), waits, -1):
                if self._held.endswith(stop[:size]):
                    waits = size
                    break
        ready = self._held[: len(self._held) - waits]
        self._held = self._held[len(self._held) - waits :]
        return ready
