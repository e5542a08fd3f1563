"""Serving: requests side by side get what each gets alone, and nothing that a client sends harms another one."""

import http.client
import json
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from samout_train.data import SPECIAL_TOKENS, Bytes, Characters
from samout_train.evaluation import Sampling, Template
from samout_train.evaluation.generate import choose
from samout_train.evaluation.serving import (
    Engine,
    Generation,
    Limits,
    PrefixStates,
    Reader,
    RequestError,
    StreamedText,
    application,
)
from samout_train.evaluation.serving.engine import draw
from samout_train.ops import use_kernels
from tests.evaluation.test_conversation import GREEDY, Counted, read_again, tiny
from tests.support.marks import spread
from tests.support.messages import assert_recorded

NAMES = ["v8", "transformer", "lstm"]
LONG = Sampling(temperature=0, max_new_tokens=10_000)


@pytest.fixture(autouse=True)
def without_compiling() -> None:
    use_kernels("reference")


class Talkative(nn.Module):
    """Says the letter a for ever, not too fast."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.fails = False

    def forward(self, ids: Tensor, state: Any = None) -> Any:
        time.sleep(0.001)
        if self.fails:
            raise RuntimeError("out of something")
        logits = torch.zeros(*ids.shape, len(Bytes()))
        logits[..., 5 + ord("a")] = 9.0
        return logits, torch.zeros(len(ids), 1)


@contextmanager
def engine(model: nn.Module, **settings: Any) -> Iterator[Engine]:
    made = Engine(model, **{"max_batch": 4, "max_waiting": 20, "cache_bytes": 1 << 20, **settings})
    try:
        yield made
    finally:
        made.close()


def wait_until_free(served: Engine) -> None:
    ends = time.monotonic() + 60
    while sum(served.places().values()):
        assert time.monotonic() < ends
        time.sleep(0.01)


class Inbox:
    """Collects what a generation delivers."""

    def __init__(self, ids: list[int], sampling: Sampling = GREEDY) -> None:
        self.ids: list[int] = []
        self.ending: str | None = None
        self._events: queue.Queue[tuple[int | None, str | None]] = queue.Queue()
        self.generation = Generation(
            ids, sampling, ends_at_special=True, deliver=lambda index, ending: self._events.put((index, ending))
        )

    def next(self) -> None:
        index, ending = self._events.get(timeout=60)
        if index is None:
            self.ending = ending
        else:
            self.ids.append(index)

    def all(self) -> list[int]:
        while self.ending is None:
            self.next()
        return self.ids


def ids_of(text: str) -> list[int]:
    return [1, *Bytes().encode(text).tolist(), 2]


class Growing(Talkative):
    """Keeps all ids, and counts the calls with several sequences."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[int] = []

    def forward(self, ids: Tensor, state: Any = None) -> Any:
        self.batches.append(len(ids))
        return super().forward(ids)[0], ids if state is None else torch.cat([state, ids], 1)


def test_states_that_cannot_be_joined_are_answered_in_turn() -> None:
    model = Growing()
    with engine(model) as served:
        inboxes = [Inbox(ids_of(text), Sampling(temperature=0, max_new_tokens=40)) for text in ("ab", "c", "def")]
        assert all(served.submit(inbox.generation) for inbox in inboxes)
        assert [inbox.all() for inbox in inboxes] == [[5 + ord("a")] * 40] * 3
        wait_until_free(served)
    assert set(model.batches) == {1}


@pytest.mark.parametrize("name", [*NAMES, "hybrid"])
def test_side_by_side_each_gets_what_it_gets_alone(name: str) -> None:
    model = tiny(name)
    prompts = [ids_of(text) for text in ("a", "bcd", "longer one " * 3, "x", "yes", "no!")]
    batches = []
    model.register_forward_pre_hook(lambda module, given: batches.append(len(given[0])))
    with engine(model) as served:
        inboxes = [Inbox(prompt) for prompt in prompts]
        assert all(served.submit(inbox.generation) for inbox in inboxes)
        got = [inbox.all() for inbox in inboxes]
        wait_until_free(served)
    assert max(batches) > 1, "they are one batch"
    assert got == [read_again(model, prompt) for prompt in prompts]
    assert {inbox.ending for inbox in inboxes} <= {"stop", "length"}


@pytest.mark.parametrize("name", NAMES)
def test_a_further_turn_reads_its_new_tokens_only(name: str) -> None:
    model = Counted(tiny(name)).eval()
    with engine(model) as served:
        first = Inbox(ids_of("a question"))
        served.submit(first.generation)
        first.all()
        read = model.read
        prompt = [*first.generation.ids, *ids_of("and another")]
        second = Inbox(prompt)
        served.submit(second.generation)
        answer = second.all()
    reused = second.generation.reused
    assert reused in (len(first.generation.ids) - 1, len(first.generation.ids))
    assert model.read - read == second.generation.fed - reused
    assert answer == read_again(model.model, prompt)


def test_kept_states_have_a_bound_and_the_least_recently_used_go_first() -> None:
    state = torch.zeros(1, 100)  # 400 bytes, and 16 for two ids
    kept = PrefixStates(3 * 416)
    for index in range(3):
        kept.keep([index, 7], state)
    assert len(kept) == 3 and kept.num_bytes == 3 * 416
    assert kept.longest([0, 7, 9])[0] == 2 and kept.longest([0, 7])[0] == 0 and kept.longest([5, 7, 9]) == (0, None)
    kept.keep([3, 7], state)
    assert len(kept) == 3 and kept.longest([1, 7, 9])[0] == 0 and kept.longest([0, 7, 9])[0] == 2
    kept.keep([0, 7, 9], state[:, :10].expand(1, 10))
    assert kept.num_bytes <= kept.max_bytes and kept.longest([0, 7, 9, 9])[0] == 3
    kept.keep([4], torch.zeros(1, 10_000))  # more than there is room for
    assert kept.longest([4, 4])[0] == 0


def test_a_cancelled_request_frees_its_place_and_too_many_are_refused() -> None:
    with engine(Talkative(), max_batch=1, max_waiting=1) as served:
        first, second, third = (Inbox(ids_of("x"), LONG) for _ in range(3))
        assert served.submit(first.generation)
        first.next()
        assert served.submit(second.generation) and not served.submit(third.generation)
        first.generation.cancel()
        second.next()
        second.generation.cancel()
        wait_until_free(served)
    assert first.ending is None and not served.submit(third.generation)


def test_a_step_that_fails_ends_what_is_in_it_and_no_more() -> None:
    model = Talkative()
    with engine(model) as served:
        first = Inbox(ids_of("x"), LONG)
        served.submit(first.generation)
        first.next()
        model.fails = True
        first.all()
        model.fails = False
        second = Inbox(ids_of("x"))
        served.submit(second.generation)
        assert len(second.all()) == 7 and second.ending == "length" and first.ending == "error"


def test_a_request_that_cannot_be_joined_ends_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(states: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("samout_train.evaluation.serving.engine.join_states", fail)
    with engine(Talkative()) as served:
        inboxes = [Inbox(ids_of(text), LONG) for text in "ab"]
        assert all(served.submit(inbox.generation) for inbox in inboxes)
        for inbox in inboxes:
            inbox.all()
    assert [inbox.ending for inbox in inboxes] == ["error", "error"]


@pytest.mark.parametrize("top_k", spread([3, None, 1], 3))
@pytest.mark.parametrize("top_p", spread([0.9, None, 0.3], 2))
def test_tokens_drawn_together_are_among_those_that_are_drawn_alone(top_k: int | None, top_p: float | None) -> None:
    torch.manual_seed(0)
    logits = torch.randn(40, 12)
    sampling = Sampling(temperature=0.7, top_k=top_k, top_p=top_p)
    generations = [
        Generation([1], sampling, ends_at_special=True, deliver=lambda index, ending: None) for _ in range(39)
    ]
    greedy = Generation([1], Sampling(temperature=0), ends_at_special=True, deliver=lambda index, ending: None)
    for number, generation in enumerate(generations):
        generation.random.manual_seed(number)
    drawn = torch.tensor([draw([*generations, greedy], logits) for _ in range(300)])
    assert set(drawn[:, 39].tolist()) == {int(logits[39].index_fill(0, torch.tensor([3]), -9).argmax())}
    generator = torch.Generator().manual_seed(0)
    settings: dict[str, Any] = {"temperature": 0.7, "top_k": top_k, "top_p": top_p, "banned_ids": [3]}
    for row in (0, 20):
        alone = torch.cat([choose(logits[row].double(), generator, **settings) for _ in range(3000)])
        together = torch.bincount(drawn[:, row], minlength=12) / 300
        assert float((together - torch.bincount(alone, minlength=12) / 3000).abs().max()) < 0.12  # 4 deviations of 300
        assert set(drawn[:, row].tolist()) <= set(range(12)) - {3}
        if top_k:
            assert set(drawn[:, row].tolist()) <= set(alone.tolist())


@pytest.mark.parametrize(
    ("text", "stops", "wanted", "ended"),
    [
        ("hello", [], "hello", False),
        ("hello there", ["lo t"], "hel", True),
        ("hello there", ["the", "ll"], "he", True),
        ("abab", ["abc"], "abab", False),
        ("aab", ["ab"], "a", True),
        ("€5 ü", ["5 ü!"], "€5 ü", False),
    ],
)
def test_text_is_sent_in_whole_characters_up_to_a_stop(text: str, stops: list[str], wanted: str, ended: bool) -> None:
    streamed = StreamedText(Bytes(), stops)
    pieces = [streamed.add(int(index)) for index in Bytes().encode(text)]
    assert "".join(pieces) + streamed.end() == wanted and streamed.has_ended is ended
    assert "\ufffd" not in "".join(pieces)


def reader(vocabulary: Any = None, **settings: Any) -> Reader:
    return Reader(
        name="tiny",
        vocabulary=vocabulary or Bytes(),
        defaults=Sampling(max_new_tokens=8),
        limits=Limits(max_prompt_tokens=200, max_new_tokens=50, max_body_bytes=10_000),
        template=Template(),
        **{"max_seq_len": None, **settings},
    )


HI = {"messages": [{"role": "user", "content": "hi"}]}


def test_a_request_becomes_the_tokens_of_its_turns() -> None:
    messages = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": "<|user|>"},
        {"role": "tool", "content": ""},
    ]
    asked = reader().chat({"messages": messages, "seed": -1, "max_completion_tokens": 9, "max_tokens": 3, "stop": "a"})
    wanted = [[4], "be kind", [1], "hi", [2], "<|user|>", [4], [2]]
    flat = [i for part in wanted for i in (Bytes().encode(part).tolist() if isinstance(part, str) else part)]
    assert asked.ids == flat and asked.is_chat and not asked.streams and asked.stops == ["a"]
    assert asked.sampling.max_new_tokens == 9 and asked.sampling.seed == 2**63 - 1
    assert reader().completion({"prompt": ["ab"]}).ids == Bytes().encode("ab").tolist()


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [3]}, "messages[0]"),
        ({"messages": [{"role": "boss", "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": "a" * 300}]}, "messages"),
        ({"messages": HI["messages"] * 2001}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 51}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream_options": 3}, "stream_options"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"logprobs": 0}, "logprobs"),  # of completions: the drawn token's
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"presence_penalty": 0.5}, "presence_penalty"),
        ({"model": "gpt"}, "model"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_what_cannot_be_answered_is_refused_by_its_field(change: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as caught:
        reader().chat({**HI, **change})
    error = caught.value.as_json()["error"]
    assert error["param"] == param and error["message"] and json.dumps(error, ensure_ascii=False).encode()
    assert caught.value.status == (404 if param == "model" else 400)
    assert_recorded(f"serving: {json.dumps(change)[:80]}", caught.value.message)


@pytest.mark.parametrize("body", [[], {"prompt": ""}, {"prompt": ["a", "b"]}, {"prompt": "\ud800"}])
def test_what_is_no_prompt_is_refused(body: Any) -> None:
    with pytest.raises(RequestError) as caught:
        reader().completion(body)
    assert ("JSON object" if body == [] else "prompt ") in caught.value.message
    assert_recorded(f"serving: completion {json.dumps(body)}", caught.value.message)


def test_a_character_that_the_vocabulary_lacks_and_a_prompt_without_room_are_refused() -> None:
    with pytest.raises(RequestError, match="character 'h' at position 0 is not in the vocabulary"):
        reader(Characters([*SPECIAL_TOKENS, "a"])).chat(HI)
    with pytest.raises(RequestError, match="messages is 4 tokens long, at most 3 are taken"):
        reader(max_seq_len=4).chat(HI)
    for body in ([], "a", None, 3):
        with pytest.raises(RequestError, match="the body must be a JSON object"):
            reader().completion(body)


@contextmanager
def server(model: nn.Module, **settings: Any) -> Iterator[tuple[int, Engine]]:
    uvicorn = pytest.importorskip("uvicorn")
    with engine(model, **settings) as served, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        of = application(served, reader(), hosts=["127.0.0.1"])
        made = uvicorn.Server(uvicorn.Config(of, log_level="critical", ws="none", lifespan="off"))
        thread = threading.Thread(target=made.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1], served
        finally:
            made.should_exit = True
            thread.join(60)


def ask(port: int, method: str, path: str, body: bytes | str | None = None, **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_openais_own_client_is_answered() -> None:
    openai = pytest.importorskip("openai")
    model = tiny("v8")
    with (
        server(model) as (port, served),
        openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=60) as client,
    ):
        assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
        asked: dict[str, Any] = {"model": "tiny", **HI, "temperature": 0, "max_tokens": 7}
        reply = client.chat.completions.create(**asked)
        answer = read_again(model, ids_of("hi"))
        assert reply.choices[0].message.content == Bytes().decode(answer)
        assert reply.usage.prompt_tokens == 4 and reply.usage.completion_tokens == len(answer)
        wanted = "length" if len(answer) == 7 else "stop"
        assert reply.choices[0].finish_reason == wanted
        stream = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = list(stream)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert said == Bytes().decode(answer) and chunks[-1].usage == reply.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
        )
        assert chunks[-2].choices[0].finish_reason == wanted
        text = client.completions.create(model="tiny", prompt="hi", temperature=0, max_tokens=5)
        assert text.choices[0].text and text.usage.completion_tokens == 5
        pieces = client.completions.create(model="tiny", prompt="hi", temperature=0, max_tokens=5, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == text.choices[0].text
        with pytest.raises(openai.BadRequestError, match="temperature must be a number from 0 to 100"):
            client.chat.completions.create(**{**asked, "temperature": -1})
        with pytest.raises(openai.NotFoundError, match="model 'gpt' is not here: there is 'tiny'"):
            client.chat.completions.create(**{**asked, "model": "gpt"})
        assert len(served.prefixes) > 0


@pytest.mark.slow
def test_what_the_server_cannot_answer_is_refused_with_its_status() -> None:
    model, path = Talkative(), "/v1/chat/completions"
    with server(model) as (port, _):
        answers = {413: ask(port, "POST", path, "x" * 20_000), 400: ask(port, "POST", path, "{")}
        model.fails = True
        answers[500] = ask(port, "POST", path, json.dumps(HI))
    with server(model, max_waiting=0) as (port, _):
        answers[429] = ask(port, "POST", path, json.dumps(HI))
    for status, (got, content) in answers.items():
        assert got == status
        message = json.loads(content)["error"]["message"]
        assert_recorded(f"serving: status {status}", message.partition(" (")[0])  # the words of json come behind it


@pytest.mark.slow
def test_a_client_that_goes_away_frees_its_place() -> None:
    with server(Talkative(), max_batch=1) as (port, served):
        served_reader = json.dumps({**HI, "max_tokens": 50})
        for stream in (b"true", b"false"):
            body = served_reader.encode()[:-1] + b', "stream": ' + stream + b"}"
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(head.encode() + body)
        wait_until_free(served)
        assert ask(port, "POST", "/v1/chat/completions", json.dumps(HI))[0] == 200


def malformed(number: int, draws: random.Random) -> tuple[str, str, bytes]:
    """A request that is wrong in one of many ways."""
    good = {**HI, "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "stream": False}
    strange = [None, -1, 2**80, 1e308, "", "a" * 300, [], {}, [[]], True, {"a": [None]}, "\ud800", float("nan"), "\x00"]
    kind = number % 7
    path = draws.choice(["/v1/chat/completions", "/v1/completions"])
    if kind == 0:
        return "POST", path, draws.randbytes(draws.randrange(200))
    if kind == 1:
        text = json.dumps(good)
        place = draws.randrange(len(text))
        return "POST", path, (text[:place] + draws.choice('{}[]",:\\0é') + text[place + draws.randrange(3) :]).encode()
    if kind == 2:
        return "POST", path, json.dumps({**good, draws.choice(list(good)): draws.choice(strange)}).encode()
    if kind == 3:
        message = {"role": draws.choice(strange), "content": draws.choice(strange)}
        return "POST", path, json.dumps({**good, "messages": [message], "prompt": draws.choice(strange)}).encode()
    if kind == 4:
        return "POST", path, draws.choice([b"[" * 9000, b'{"a":' * 1500, b"9" * 9000, b" " * 20_000, b"x" * 50_000])
    if kind == 5:
        return draws.choice(["GET", "PUT", "DELETE", "HEAD"]), path, b""
    return draws.choice(["GET", "POST"]), f"/{draws.randbytes(9).hex()}/%00%ff../", b"{}"


@pytest.mark.slow
def test_a_thousand_malformed_requests_leave_it_running() -> None:
    draws = random.Random(0)
    with server(tiny("v8")) as (port, served):
        statuses: set[int] = set()
        for number in range(1000):
            method, path, body = malformed(number, draws)
            status, answer = ask(port, method, path, body)
            statuses.add(status)
            assert status < 500 and b"Traceback" not in answer, (method, path, body, answer)
            if status != 200 and method != "HEAD":
                assert json.loads(answer)["error"]["message"], (body, answer)
        for raw in (
            b"\x00\xff\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\nContent-Length: 99",
        ):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(raw)
        assert {200, 400, 404, 405, 413} <= statuses
        assert ask(port, "GET", "/v1/models", None, Host="evil.example")[0] == 400
        wait_until_free(served)
        status, answer = ask(
            port, "POST", "/v1/chat/completions", json.dumps({**HI, "temperature": 0, "max_tokens": 7})
        )
        assert status == 200 and json.loads(answer)["usage"]["prompt_tokens"] == 4
