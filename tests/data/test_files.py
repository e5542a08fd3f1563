"""Files of a folder: each is found once, under any name, and what is left out is named."""

import gzip
import lzma
import os
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import pytest

from samout_train.data import find
from samout_train.data.text import files
from samout_train.data.text.encoding import NO_TEXT


def made(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}", "utf-8")


def names(root: Path, pattern: str = "**/*.txt") -> list[str]:
    return [path.relative_to(root).as_posix() for path in find(str(root), pattern).files]


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("**/*.txt", ["a.txt", "b/c.txt", "b/d/e.txt"]),
        ("*.txt", ["a.txt"]),
        ("*/*.txt", ["b/c.txt"]),
        ("b/**/*", ["b/c.txt", "b/d/e.txt", "b/f.md"]),
        ("**", ["a.txt", "b/c.txt", "b/d/e.txt", "b/f.md"]),
        ("**/d/*", ["b/d/e.txt"]),
        ("./**/[ac].t?t", ["a.txt", "b/c.txt"]),
        ("**/*.*", ["a.txt", "b/c.txt", "b/d/e.txt", "b/f.md"]),
    ],
)
def test_a_pattern_finds_what_it_finds_in_a_shell(tmp_path: Path, pattern: str, wanted: list[str]) -> None:
    made(tmp_path, "a.txt", "b/c.txt", "b/d/e.txt", "b/f.md")
    assert names(tmp_path, pattern) == wanted and find(f"{tmp_path}/", pattern).left_out == {}


@pytest.mark.parametrize("kind", [PurePosixPath, PureWindowsPath])
def test_the_order_of_files_is_that_of_linux_everywhere(kind: type[PurePath]) -> None:
    wanted = [kind("r", *parts) for parts in (["B.txt"], ["a", "b.txt"], ["a.txt"], ["b.txt"], ["\u00e4.txt"])]
    assert files.in_order(kind("r"), reversed(wanted)) == wanted
    assert kind is PureWindowsPath or sorted(wanted) == wanted, "that of paths there"


@pytest.mark.parametrize("pattern", ["", "../*.txt", "/tmp/*.txt", "a/../../*.txt", "a**/b.txt"])
def test_a_pattern_that_cannot_be_meant_is_refused(tmp_path: Path, pattern: str) -> None:
    made(tmp_path, "a.txt")
    with pytest.raises(ValueError, match=r"pattern=.*: is not a pattern of files .*: set one such as \*\*/\*.txt"):
        find(str(tmp_path), pattern)


def test_links_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    made(root, "a.txt", "deep/b.txt")
    made(other, "c.txt", "sub/d.txt")
    made(tmp_path, "alone.txt")
    (root / "link").symlink_to(other)
    (root / "one.txt").symlink_to(tmp_path / "alone.txt")
    (other / "back").symlink_to(root)
    (root / "deep" / "up").symlink_to(root / "deep")
    found = find(str(root), "**/*.txt")
    assert names(root) == ["a.txt", "deep/b.txt", "link/c.txt", "link/sub/d.txt", "one.txt"]
    assert found.left_out == {files.LOOP: ["deep/up", "link/back"]}


def test_links_to_each_other_end(tmp_path: Path) -> None:
    for name in "abcdef":
        made(tmp_path, f"{name}/text.txt")
        for other in "abcdef":
            (tmp_path / name / f"to_{other}").symlink_to(tmp_path / other)
    assert names(tmp_path) == [f"{name}/text.txt" for name in "abcdef"]


def test_a_file_is_found_once_under_its_own_first_name(tmp_path: Path) -> None:
    made(tmp_path, "b.txt", "z/c.txt")
    (tmp_path / "a.txt").symlink_to(tmp_path / "b.txt")
    (tmp_path / "aa").symlink_to(tmp_path / "z")
    os.link(tmp_path / "b.txt", tmp_path / "d.txt")
    assert names(tmp_path) == ["b.txt", "z/c.txt"]
    assert find(str(tmp_path), "**/*.txt").left_out == {files.SAME: ["d.txt", "a.txt", "aa/c.txt"]}
    assert names(tmp_path, "aa/*.txt") == ["aa/c.txt"]  # the folder is followed where the pattern names the link


def test_what_is_left_out_is_counted_and_named(tmp_path: Path) -> None:
    made(tmp_path, "a.txt", ".hidden.txt", ".git/x.txt", ".ipynb_checkpoints/x.txt", "b.TXT", "c.txt.gz", "d.md")
    made(tmp_path, "h.txt.7z")
    (tmp_path / "e.txt").symlink_to(tmp_path / "absent")
    (tmp_path / "f.txt").symlink_to("f.txt")
    os.mkfifo(tmp_path / "g.txt")
    found = find(str(tmp_path), "**/*.txt")
    assert names(tmp_path) == ["a.txt"]
    assert found.left_out == {
        files.HIDDEN: [".git", ".hidden.txt", ".ipynb_checkpoints"],
        files.OTHER_CASE: ["b.TXT"],
        files.NOT_NAMED: ["c.txt.gz"],
        files.COMPRESSED: ["h.txt.7z"],
        files.SPECIAL: ["g.txt"],
        files.DANGLING: ["e.txt", "f.txt"],
    }
    words = found.left_out_in_words()
    assert words.startswith("hidden: 3 (.git, .hidden.txt, .ipynb_checkpoints); in other upper and lower case")
    assert names(tmp_path, ".git/*.txt") == [".git/x.txt"]


def test_a_folder_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "a.txt", "closed/b.txt")
    scan = os.scandir

    def refusing(path: Path) -> object:
        if path.name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(files.os, "scandir", refusing)
    found = find(str(tmp_path), "**/*.txt")
    assert found.left_out == {files.CLOSED: ["closed"]} and [path.name for path in found.files] == ["a.txt"]


def test_where_nothing_matches_what_was_left_out_says_why(tmp_path: Path) -> None:
    made(tmp_path, "a.txt.gz", "a.txt.xz", "B.TXT")
    with pytest.raises(ValueError, match=r"no file that matches .*to be decompressed first: 1 .a.txt.xz") as caught:
        find(str(tmp_path), "**/*.txt")
    assert "compressed, and not named by the pattern, as **/*.txt.gz does: 1 (a.txt.gz)" in str(caught.value)
    assert "in other upper and lower case than the pattern: 1 (B.TXT)" in str(caught.value)


def test_names_of_any_bytes_are_found_and_can_be_printed(tmp_path: Path) -> None:
    strange = [b"\xff\xfe.txt", b"new\nline.txt", "中文 a=b,[c]'\".txt".encode()]
    for name in strange:
        (tmp_path / os.fsdecode(name)).write_text("text")
        os.link(tmp_path / os.fsdecode(name), tmp_path / os.fsdecode(name.replace(b".txt", b"z.txt")))
    found = find(str(tmp_path), "**/*.txt")
    assert {os.fsencode(path.name) for path in found.files} == set(strange)
    assert found.left_out == {files.SAME: ["new\\nlinez.txt", "中文 a=b,[c]'\"z.txt", "\\udcff\\udcfez.txt"]}
    found.left_out_in_words().encode()


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="is not a regular file: copy its content to one"):
        find(str(tmp_path / "pipe"), "**/*.txt")


def test_a_file_without_a_lasting_size_is_no_file(tmp_path: Path) -> None:
    status = Path("/proc/self/status")
    if not status.is_file():
        pytest.skip("there is no /proc")
    made(tmp_path, "a.txt")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "s.txt").symlink_to(status)
    found = find(str(tmp_path), "**/*.txt")
    assert found.left_out == {files.SPECIAL: ["s.txt"]} and len(found.files) == 2
    with pytest.raises(ValueError, match="status: is not a regular file: copy its content to one"):
        find(str(status), "**/*.txt")


def test_compressed_files_are_found_where_the_pattern_names_them(tmp_path: Path) -> None:
    for name in ("a.txt.gz", "b.txt.gz"):
        (tmp_path / name).write_bytes(gzip.compress(b"text"))
    made(tmp_path, "b.txt")
    assert names(tmp_path, "**/*.txt*") == ["a.txt.gz", "b.txt"]
    assert find(str(tmp_path), "**/*.txt*").left_out == {files.TWICE: ["b.txt.gz"]}
    assert names(tmp_path, "**/*.gz") == ["a.txt.gz", "b.txt.gz"], "the other file is not read"


BINARY = {
    "picture.png": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "late": b"a" * 7999 + b"\0",
    "paper": b"%PDF-1.7\n",
    "packed": gzip.compress(b"\0\1\2\3\4\5\6\7"),
}
PACKED = {"a.xz": lzma.compress(b"text"), "b.zip": b"PK\x03\x04"}
KEPT = {
    "later": b"a" * 8000 + b"\0",
    "latin": "naïve".encode("latin-1"),
    "utf_16": "text of some length".encode("utf-16-le"),
    "utf_32": "text".encode("utf-32"),
    "damaged": gzip.compress(b"text")[:-4],
    "empty": b"",
}


def test_files_that_are_no_text_are_passed_over_by_name(tmp_path: Path) -> None:
    """Those in another encoding are kept, and refused with the command that converts them when they are read."""
    for name, content in (BINARY | PACKED | KEPT).items():
        (tmp_path / name).write_bytes(content)
    found = find(str(tmp_path), "**/*")
    assert found.left_out == {files.COMPRESSED: sorted(PACKED), NO_TEXT: sorted(BINARY)}
    assert [path.name for path in found.files] == sorted(KEPT)
    assert "no text (a PDF, or a zero byte among the first 8,000): 4 (late, packed, paper, ...)" in (
        found.left_out_in_words()
    )
