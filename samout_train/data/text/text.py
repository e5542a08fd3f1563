"""The data source `text`: a file of UTF-8 text, or a folder of files."""

from dataclasses import dataclass

from samout_train.config import validated
from samout_train.data.source import source_function
from samout_train.data.text.base import TextSource
from samout_train.data.text.documents import LineEnds, TextReader
from samout_train.data.text.files import Survey, find, survey
from samout_train.runtime import home_path


@validated
@dataclass(kw_only=True)
class Text(TextSource):
    """UTF-8 text.

    Args:
        path: A file, or a folder with files that match `pattern`, in the order of their names, each after `<|sos|>`.
        pattern: The files of a folder, such as `**/*.txt`.
    """

    path: str
    pattern: str

    def look_at(self) -> Survey:
        """Find the files and compute their digests."""
        return look_at(self.path, self.pattern, self.line_ends)


text = source_function(Text)


def look_at(path: str, pattern: str, line_ends: LineEnds) -> Survey:
    """Find the files of a text and compute their digests.

    Raises:
        ValueError: if there is no such file, or none matches.
    """
    found = find(path, pattern)
    reader = TextReader(sos=home_path(path).is_dir(), line_ends=line_ends)
    return survey(found.root, found.files, reader, found.left_out_in_words())
