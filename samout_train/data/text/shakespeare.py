"""Tiny Shakespeare, a common text for comparing small language models; downloaded once if no file is given.

Source: karpathy/char-rnn, data/tinyshakespeare/input.txt; 1,115,394 bytes, 65 characters.
"""

import hashlib
import http.client
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from samout_train.config import Problem, validated
from samout_train.data.source import source_function
from samout_train.data.text.base import TextSource
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, survey
from samout_train.runtime import cache_path, home_path, replace_file, sha256_of

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
NUM_BYTES = 1_115_394
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
NAMES = ("tinyshakespeare.txt", "shakespeare.txt", "input.txt")  # names of a copy that the user put into the cache
TIMEOUT_SECONDS = 20


@validated
@dataclass(kw_only=True)
class Shakespeare(TextSource):
    """Tiny Shakespeare.

    Args:
        path: A copy of the text; None for tinyshakespeare.txt in the cache, which is downloaded if missing.
    """

    path: str | None

    def look_at(self) -> Survey:
        """Find the file and compute its digest.

        Raises:
            ValueError: if the file is another text.
            ConnectionError: if it cannot be downloaded.
        """
        if self.path is None:
            return _survey(_downloaded(), self.line_ends)
        return _survey(Path(self.path), self.line_ends)

    def setting_problems(self, name: str) -> list[Problem]:
        """Return the problems of the settings and a given file; downloads nothing."""
        if self.path is None:
            return []
        return super().setting_problems(name)


shakespeare = source_function(Shakespeare)


def _survey(path: Path, line_ends: LineEnds) -> Survey:
    if not home_path(path).is_file():
        raise ValueError(f"path={path}: is not a file: set it to a copy of the text, or to null to download it")
    looked_at = survey(home_path(path).parent, [home_path(path)], TextReader(sos=False, line_ends=line_ends))
    if looked_at.sha256 != SHA256:
        raise ValueError(
            f"path={path}: is not tiny Shakespeare ({looked_at.num_bytes:,} bytes, sha256 {looked_at.sha256}): it has "
            f"{NUM_BYTES:,} bytes, sha256 {SHA256}; for another text use data=text"
        )
    return looked_at


def _downloaded() -> Path:
    path = cache_path("shakespeare", SHA256, ending=".txt")
    for copy in (path, *(path.with_name(name) for name in NAMES)):
        if copy.is_file() and sha256_of(copy) == SHA256:
            return copy
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_SECONDS) as answer:
            content = answer.read(NUM_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"data=shakespeare could not be downloaded from {URL} ({reason}): copy the file here "
            f"({NUM_BYTES:,} bytes, sha256 {SHA256[:8]}...) and set data.path=FILE, or put it at "
            f"{path.with_name(NAMES[0])}"
        ) from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise ConnectionError(
            f"the download from {URL} is not tiny Shakespeare (its sha256 differs): set data.path=FILE to a copy"
        )
    replace_file(path, lambda output: output.write(content))
    return path
