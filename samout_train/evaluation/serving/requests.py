"""Check requests of OpenAI's clients: report mistakes, and refuse unsupported settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from samout_train.data import SURROGATE, Turn, Vocabulary
from samout_train.evaluation.conversation import Sampling, Template

MOST_STOPS = 4
LONGEST_STOP = 1000
MOST_MESSAGES = 2000
LARGEST_SEED = 2**63 - 1
# Unsupported settings that would change an answer; a neutral value is accepted.
NOT_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "best_of": (None, 1),
    "echo": (None, False),
    "suffix": (None, ""),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "logit_bias": (None, {}),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "audio": (None,),
}
ROLES = ("system", "developer", "tool", "function", "user", "assistant")


class RequestError(Exception):
    """Report a request that cannot be answered.

    Args:
        message: The problem and the remedy.
        param: The wrong field; None if it is not a single field.
        status: HTTP status code.
    """

    def __init__(self, message: str, param: str | None = None, *, status: int = 400) -> None:
        super().__init__(message)
        self.message, self.param, self.status = message, param, status

    def as_json(self) -> dict[str, Any]:
        """Return the body of the answer, as OpenAI's clients read it."""
        kind = "invalid_request_error"
        if self.status >= 500 or self.status == 429:
            kind = "server_error"
        message = self.message.encode("utf-8", "backslashreplace").decode()  # it may contain half a surrogate pair
        return {"error": {"message": message, "type": kind, "param": self.param, "code": None}}


@dataclass(frozen=True)
class Limits:
    """Hold the limits of requests.

    Args:
        max_prompt_tokens: Tokens of all messages, or of a prompt.
        max_new_tokens: Tokens of an answer.
        max_body_bytes: Bytes of a request.
    """

    max_prompt_tokens: int
    max_new_tokens: int
    max_body_bytes: int = 1 << 20


@dataclass(frozen=True)
class Asked:
    """Hold a checked request.

    Args:
        ids: The prompt.
        sampling: How tokens are drawn.
        stops: Texts that end the answer.
        streams: Whether the answer is sent as it is drawn.
        with_usage: Whether a stream ends with the counts of tokens.
        is_chat: Whether a role's token ends the answer.
    """

    ids: list[int]
    sampling: Sampling
    stops: list[str]
    streams: bool
    with_usage: bool
    is_chat: bool


class Reader:
    """Check requests for one model.

    Args:
        name: Name of the model.
        vocabulary: Its vocabulary.
        defaults: Settings for fields that a request leaves out.
        limits: Limits of requests.
        template: How a conversation is written as tokens.
        max_seq_len: Tokens that the model has room for; None for any number.
    """

    def __init__(
        self,
        *,
        name: str,
        vocabulary: Vocabulary,
        defaults: Sampling,
        limits: Limits,
        template: Template,
        max_seq_len: int | None,
    ) -> None:
        self.name, self.vocabulary, self.defaults, self.limits = name, vocabulary, defaults, limits
        self.template = template
        self.max_seq_len = max_seq_len

    def chat(self, body: Any) -> Asked:
        """Check a request for the next message of a conversation.

        Raises:
            RequestError: if it cannot be answered.
        """
        content = _mapping(body)
        turns = _turns(content.get("messages"))
        try:
            ids = self.template.begin + self.template.ids_of(turns, self.vocabulary) + self.template.answer
        except ValueError as error:
            raise RequestError(str(error), "messages") from error
        default = min(self.defaults.max_new_tokens, self.limits.max_new_tokens)
        return self._asked(content, ids, "messages", default, is_chat=True)

    def completion(self, body: Any) -> Asked:
        """Check a request for the text after a prompt.

        Raises:
            RequestError: if it cannot be answered.
        """
        content = _mapping(body)
        prompt = content.get("prompt")
        if isinstance(prompt, list) and len(prompt) == 1:
            prompt = prompt[0]
        if not isinstance(prompt, str) or not prompt:
            raise RequestError("prompt must be one text of at least one character", "prompt")
        _require_characters(prompt, "prompt")
        try:
            ids = self.template.ids_of_text(prompt, self.vocabulary)
        except ValueError as error:
            raise RequestError(str(error), "prompt") from error
        return self._asked(content, ids, "prompt", min(16, self.limits.max_new_tokens), is_chat=False)

    def _asked(self, content: Mapping[str, Any], ids: list[int], param: str, default: int, *, is_chat: bool) -> Asked:
        model = content.get("model", self.name)
        if model != self.name:
            raise RequestError(f"model {model!r:.100} is not here: there is {self.name!r}", "model", status=404)
        for key, allowed in NOT_SUPPORTED.items():
            given = content.get(key)
            if given not in allowed or (given is not None and isinstance(given, bool) != isinstance(allowed[-1], bool)):
                raise RequestError(f"{key} is not supported: leave it out", key)
        most = self.limits.max_prompt_tokens
        if self.max_seq_len is not None:
            most = min(most, self.max_seq_len - 1)
        if len(ids) > most:
            raise RequestError(f"{param} is {len(ids)} tokens long, at most {most} are taken: shorten it", param)
        options = content.get("stream_options") or {}
        if not isinstance(options, dict):
            raise RequestError("stream_options must be an object", "stream_options")
        return Asked(
            ids,
            self._sampling(content, default),
            _stops(content.get("stop")),
            _flag(content, "stream"),
            _flag(options, "include_usage"),
            is_chat,
        )

    def _sampling(self, content: Mapping[str, Any], default: int) -> Sampling:
        given, limits = self.defaults, self.limits
        key = "max_tokens"
        if content.get("max_completion_tokens") is not None:
            key = "max_completion_tokens"
        return Sampling(
            temperature=_number(content, "temperature", given.temperature, 0, 100),
            top_p=_number(content, "top_p", given.top_p or 1.0, 1e-9, 1),
            top_k=_whole(content, "top_k", given.top_k, 1, LARGEST_SEED),
            repetition_penalty=_number(content, "repetition_penalty", given.repetition_penalty, 0.01, 10),
            penalty_window=given.penalty_window,
            max_new_tokens=_whole(content, key, default, 1, limits.max_new_tokens) or default,
            seed=_whole(content, "seed", given.seed, -LARGEST_SEED - 1, LARGEST_SEED, fold=True) or 0,
        )


def _mapping(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):
        raise RequestError("the body must be a JSON object")
    return body


def _turns(messages: Any) -> list[Turn]:
    if not isinstance(messages, list) or not messages:
        raise RequestError("messages must be a list of at least one message", "messages")
    if len(messages) > MOST_MESSAGES:
        raise RequestError(f"messages has {len(messages)} messages, at most {MOST_MESSAGES} are taken", "messages")
    turns = []
    for number, message in enumerate(messages):
        param = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ROLES:
            raise RequestError(f"{param} must have a role: {', '.join(ROLES)}", param)
        content = message.get("content")
        if isinstance(content, list) and all(_is_text(part) for part in content):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise RequestError(f"{param}.content must be a text, or a list of parts that are text", param)
        _require_characters(content, param)
        turns.append(Turn(role, content))
    return turns


def _require_characters(text: str, param: str) -> None:
    if SURROGATE.search(text):
        raise RequestError(f"{param} has half a surrogate pair, which is not a character: leave it out", param)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _stops(given: Any) -> list[str]:
    if given is None:
        return []
    stops: Sequence[Any] = given if isinstance(given, list) else [given]
    if len(stops) > MOST_STOPS or not all(isinstance(one, str) and 0 < len(one) <= LONGEST_STOP for one in stops):
        raise RequestError(f"stop must be a text, or at most {MOST_STOPS} texts, none of them empty", "stop")
    return [str(one) for one in stops]


def _flag(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise RequestError(f"{key} must be true or false", key)
    return bool(value)


def _number(content: Mapping[str, Any], key: str, default: float, low: float, high: float) -> float:
    value = content.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise RequestError(f"{key} must be a number from {low:g} to {high:g}", key)
    return float(value)


def _whole(
    content: Mapping[str, Any], key: str, default: int | None, low: int, high: int, *, fold: bool = False
) -> int | None:
    value = content.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise RequestError(f"{key} must be a whole number from {low} to {high}", key)
    if fold:  # negative seeds are valid too
        return value % (LARGEST_SEED + 1)
    return value
