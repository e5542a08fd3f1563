"""Files in pieces: each piece by itself, from any piece on, in the same places."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from samout_train.cli import tokenize
from samout_train.config import compose_config
from samout_train.data import JsonlReader
from samout_train.data.text.documents import KEY, Reader, Special, TextReader
from samout_train.data.text.files import survey
from samout_train.data.vocabulary.bpe import BytePairs
from tests.support.marks import spread

ROLES = {"user": "<|user|>", "assistant": "<|agent|>", "system": "<|history|>"}


def joined(reader: Reader, path: Path, start: int = 0) -> str:
    parts = [part for piece in reader.read(path, start) for part in piece.parts]
    return "".join(part.token if isinstance(part, Special) else part for part in parts)


def jsonl(path: Path, *documents: Any) -> Path:
    path.write_text("".join(json.dumps(document, ensure_ascii=False) + "\n" for document in documents), "utf-8")
    return path


@pytest.mark.parametrize("chunk_bytes", [5, 7, 64, 1000])
def test_text_read_from_the_end_of_any_piece_goes_on_with_the_same_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int
) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "text.txt"
    content = "äöü€ 𝄞abc\n\n  and so on; the end ofaverylongwordindeedthatfillsapiece \n" * 9
    path.write_text(content, "utf-8")
    pieces = list(TextReader(sos=True).read(path))
    assert joined(TextReader(sos=True), path) == "<|sos|>" + content and pieces[-1].end == len(content.encode())
    for number, piece in enumerate(pieces):
        assert list(TextReader(sos=True).read(path, piece.end)) == pieces[number + 1 :]


def test_pieces_of_a_text_are_tokenized_as_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", 50)
    path = tmp_path / "text.txt"
    content = "The sands of time; the hand of\n\n\tthe   band. It's 'til ten. " * 20
    path.write_text(content, "utf-8")
    vocabulary = BytePairs.of_text([content], 300)
    ids = [vocabulary.encode(str(part)).tolist() for piece in TextReader(sos=False).read(path) for part in piece.parts]
    assert len(ids) > 10 and [index for part in ids for index in part] == vocabulary.encode(content).tolist()


def test_an_empty_text_has_no_piece(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    assert list(TextReader(sos=True).read(tmp_path / "empty.txt")) == []


def test_documents_stand_behind_sos_and_roles_become_their_tokens(tmp_path: Path) -> None:
    talk = [("system", "be kind"), ("user", "hi <|pad|>"), ("assistant", "hello\nyou")]
    conversation = {"conversations": [{"role": role, "content": content} for role, content in talk]}
    path = jsonl(tmp_path / "a.jsonl", {"text": "née"}, {"text": ""}, conversation, {"text": "x", "id": 7})
    path.write_text(path.read_text("utf-8").replace("\n", "\n\n"), "utf-8")  # blank lines are passed over
    assert joined(JsonlReader.of(ROLES), path) == (
        "<|sos|>née<|sos|><|history|>be kind<|user|>hi <|pad|><|agent|>hello\nyou<|sos|>x"
    )


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b'{"text": "x"}\n')
    assert joined(JsonlReader.of(ROLES), path) == "<|sos|>x"


def test_documents_read_from_the_end_of_any_piece_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", 40)
    path = jsonl(tmp_path / "a.jsonl", *({"text": f"document {number} äö"} for number in range(20)))
    pieces = list(JsonlReader.of(ROLES).read(path))
    assert len(pieces) > 5
    for number, piece in enumerate(pieces):
        assert list(JsonlReader.of(ROLES).read(path, piece.end)) == pieces[number + 1 :]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("not json", "line 3: is not JSON"),
        ("[1, 2]", 'line 3: has neither a string "text" nor a list "conversations"; it has: list'),
        ('{"txt": "a", "id": 3}', "it has: txt, id"),
        ("{}", "it has: nothing"),
        ('{"text": 5}', "it has: text"),
        ('{"conversations": [{"role": "user"}]}', 'must be {"role": a string, "content": a string}'),
        ('{"conversations": ["hi"]}', 'must be {"role": a string, "content": a string}'),
        (
            '{"conversations": [{"role": "usr", "content": "a"}]}',
            "role 'usr' has no token (assistant, system, user have",
        ),
        (r'{"text": "\ud800"}', "half a surrogate pair"),
    ],
)
def test_a_line_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, message: str
) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"text": "one"}, {"text": "two"})
    path.write_text(path.read_text("utf-8") + line + "\n", "utf-8")
    for chunk_bytes in (4, 1000):
        monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
        with pytest.raises(ValueError, match=r"a.jsonl line 3: ") as caught:
            list(JsonlReader.of(ROLES).read(path))
        assert message in str(caught.value)


def test_a_key_that_stands_twice_is_refused_and_messages_beside_a_text_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for line, key in (
        ('{"text": "a", "text": "b"}', "text"),
        ('{"conversations": [{"role": "user", "content": "a", "content": "b"}]}', "content"),
    ):
        path.write_text(line, "utf-8")
        with pytest.raises(ValueError, match=rf'a.jsonl line 1: has "{key}" twice in one object: remove one of them'):
            list(JsonlReader.of(ROLES).read(path))
    path.write_text(json.dumps({"text": '"text" "text"', "messages": [1]}) + "\n", "utf-8")
    (piece,) = JsonlReader.of(ROLES).read(path)
    assert piece.parts[1:] == ['"text" "text"']
    assert piece.left_out == {'"messages" beside a "text", which is read': 1}


@pytest.mark.parametrize("chunk_bytes", [3, 1000])
@pytest.mark.parametrize(
    ("content", "offset"), [(b"abc" * 20 + b"\xff" + b"abc" * 20, 60), ("ä".encode() * 40 + b"\xc3", 80)]
)
def test_the_first_byte_that_is_no_utf_8_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, offset: int, chunk_bytes: int
) -> None:
    monkeypatch.setattr("samout_train.data.text.documents.CHUNK_BYTES", chunk_bytes)
    path = tmp_path / "bad.txt"
    path.write_bytes(content)
    for reader in (TextReader(sos=False), JsonlReader.of(ROLES)):
        with pytest.raises(ValueError, match=f"bad.txt (is not UTF-8|ends within a character) at byte {offset} "):
            list(reader.read(path))


@pytest.mark.parametrize("token", ["<|sos|>", "<|pad|>", "user"])
def test_a_role_needs_a_token_for_roles(token: str) -> None:
    with pytest.raises(ValueError, match=r"roles.boss=.*must be <\|user\|> or <\|agent\|> or <\|history\|>"):
        JsonlReader.of({"boss": token})


def said(content: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def test_an_empty_text_hides_no_conversation_and_what_is_passed_over_is_counted(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"text": "", "conversations": said("talk")},
        {"text": None, "conversations": said("null")},
        {"text": "read", "conversations": said("not read")},
        {"text": "alone", "conversations": []},
        *[{"text": ""}, {"conversations": []}, {"text": "", "conversations": []}, {"conversations": said("")}],
    )
    assert joined(JsonlReader.of(ROLES), path) == ("<|sos|><|user|>talk<|sos|><|user|>null<|sos|>read<|sos|>alone")
    counts = survey(tmp_path, [path], JsonlReader.of(ROLES)).count()
    wanted = {'"conversations" beside a "text", which is read': 1, "documents without text": 4}
    assert counts.left_out == wanted and counts.documents == 4
    assert survey(tmp_path, [path], JsonlReader.of(ROLES)).count() == counts, "as the cache has it"


NAMES = ["critic", "tool_2", "a-b", "a$b", "1", "0", "null", "true", "_x"]
STRANGE = [
    "tool call",
    "bot's",
    "",
    "tool.x=1",
    "tool.x",
    "a/b",
    "a@b",
    "é",
    "01",
    "1e5",
    "-x",
    'a"b\\c',
    "${seed}",
    "a\nb",
]


@pytest.mark.parametrize("role", spread(NAMES, 6) + spread(STRANGE, 3))
def test_what_is_printed_for_a_role_gives_it_a_token(tmp_path: Path, role: str) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"conversations": said("hi", role)})
    for verb, roles_key in (("config", "data.roles"), ("tokenize", "roles")):
        with pytest.raises(ValueError, match="has no token") as caught:
            list(JsonlReader.of(ROLES, roles_key=roles_key).read(path))
        hint = str(caught.value).partition(" have one): ")[2]
        assert "\n" not in hint and hint.endswith(", or another token")
        words, folders = ["data=jsonl"] if verb == "config" else [], []
        if role in NAMES:
            words.append(shlex.split(hint.removesuffix(", or another token"))[1])
        else:
            file, line = re.findall(r"write DIR/(\S+) with the line `(.*)` and", hint)[0]
            (tmp_path / file).parent.mkdir(exist_ok=True)
            (tmp_path / file).write_text(line + "\n", "utf-8")
            words += re.findall(r"--config-dir=DIR (\S+), or", hint)
            folders.append(str(tmp_path))
        config = compose_config(words, config_name=verb, config_dirs=folders).config
        roles = config["data"]["roles"] if verb == "config" else config["roles"]
        assert roles[role] == "<|user|>" and roles["assistant"] == "<|agent|>"
        assert joined(JsonlReader.of(roles), path) == "<|sos|><|user|>hi"


@pytest.mark.slow
@pytest.mark.parametrize("role", ["critic", "tool call"])
def test_tokenize_prints_what_gives_a_role_a_token_there(
    tmp_path: Path, role: str, capsys: pytest.CaptureFixture[str]
) -> None:
    jsonl(tmp_path / "a.jsonl", {"conversations": said("hi", role)})
    words = [f"path={tmp_path}", f"out={tmp_path / 'out'}", "pattern=*.jsonl", "vocabulary=bytes", "jobs=1"]
    assert tokenize.tokenize(words) == 2
    told = capsys.readouterr().err
    assert {"critic": "set '+roles.critic=<|user|>', or", "tool call": "--config-dir=DIR +roles=more, or"}[role] in told
    (tmp_path / "conf/roles").mkdir(parents=True)
    (tmp_path / "conf/roles/more.yaml").write_text('"tool call": <|user|>\n', "utf-8")
    added = ["+roles.critic=<|user|>"] if role == "critic" else [f"--config-dir={tmp_path / 'conf'}", "+roles=more"]
    assert tokenize.tokenize([*words, *added, f"out={tmp_path / 'other'}"]) == 0


def test_keys_that_hydra_takes_are_those_that_are_printed_as_such() -> None:
    parser = OverridesParser.create()
    for role in [*NAMES, *STRANGE, *(f"a{chr(code)}b" for code in range(32, 127))]:
        try:
            parsed = parser.parse_override(f"+data.roles.{role}='<|user|>'")
            taken = parsed.key_or_group == f"data.roles.{role}" and "." not in role
        except HydraException:
            taken = False
        assert bool(KEY.fullmatch(role)) == taken, role
