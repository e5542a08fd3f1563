"""Tiny Shakespeare from a file, from the network (a server in this process), and from neither."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from samout_train.data import Source
from samout_train.data.text import shakespeare as module
from samout_train.data.text.shakespeare import Shakespeare, shakespeare

SETTINGS: dict[str, Any] = {
    "vocabulary": "characters",
    "vocab_size": 4096,
    "vocabulary_path": None,
    "seq_len": 64,
    "ignore_index": 3,
}


def source(path: Path | None = None) -> Source:
    return shakespeare(path=None if path is None else str(path), seed=0, **SETTINGS)


class Serves(BaseHTTPRequestHandler):
    content = b""
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HTTPServer]:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    with HTTPServer(("127.0.0.1", 0), Serves) as running:
        monkeypatch.setattr(module, "URL", f"http://127.0.0.1:{running.server_port}/input.txt")
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_copy_is_read_and_has_the_known_characters(shared: Path) -> None:
    got = source(shared / "data" / "tinyshakespeare.txt")
    assert got.vocab_size == 65 + 5 and got.description["tokens"] == 1_115_394


@pytest.mark.slow
def test_it_is_downloaded_once(
    shared: Path, server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Serves, "content", (shared / "data" / "tinyshakespeare.txt").read_bytes())
    monkeypatch.setattr(Serves, "requests", 0)
    assert Shakespeare.problems(SETTINGS | {"path": None}, "data") == []
    assert source().description["sha256"] == module.SHA256
    assert source().vocab_size == 70 and Serves.requests == 1
    (kept,) = (tmp_path / "cache").glob("*.txt")
    kept.write_bytes(b"damaged")
    assert source().vocab_size == 70 and Serves.requests == 2


@pytest.mark.slow
def test_something_else_from_the_network_is_not_kept(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Serves, "content", b"a login page")
    for _ in range(2):
        with pytest.raises(ConnectionError, match=r"is not tiny Shakespeare .*data\.path=FILE"):
            source()


def test_without_a_network_the_message_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/input.txt")
    with pytest.raises(ConnectionError, match=r"could not be downloaded .*refused.* set data\.path=FILE"):
        source()


@pytest.mark.parametrize("name", module.NAMES)
def test_a_copy_in_the_cache_is_found_by_its_name_and_content(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    monkeypatch.setenv("SAMOUT_TRAIN_CACHE", str(cache))
    monkeypatch.setattr(module, "URL", "http://127.0.0.1:9/input.txt")
    (cache / name).write_bytes(b"another text")
    with pytest.raises(ConnectionError, match=rf"or put it at .*cache.{module.NAMES[0]}"):
        source()
    (cache / name).write_bytes((shared / "data" / "tinyshakespeare.txt").read_bytes())
    looked_at = Shakespeare(**SETTINGS, path=None, seed=0).look_at()
    assert looked_at.files == (cache / name,)


def test_another_text_is_refused(small_text: Path, tmp_path: Path) -> None:
    (problem,) = map(str, Shakespeare.problems(SETTINGS | {"path": str(small_text)}, "data"))
    assert problem.startswith(f"data.path={small_text}: is not tiny Shakespeare") and "data=text" in problem
    with pytest.raises(ValueError, match="is not tiny Shakespeare"):
        source(small_text)
    (absent,) = map(str, Shakespeare.problems(SETTINGS | {"path": str(tmp_path / "absent")}, "data"))
    assert "is not a file: set it to a copy" in absent
