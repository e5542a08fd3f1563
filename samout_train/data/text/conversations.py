"""Read conversations in four common JSON forms as turns of roles.

    {"messages": [{"role": "user", "content": "Hi"}, ...]}                 OpenAI
    {"conversations": [{"from": "human", "value": "Hi"}, ...]}             ShareGPT
    {"conversations": [{"role": "user", "content": "Hi"}, ...]}            its own
    {"instruction": "Translate", "input": "Hi", "output": "Salut"}         Alpaca

Fields other than the content are counted, or written into the text by a template: none is dropped silently. The
template is that of Hermes and Qwen, with `<think>`, `<tools>` and `<tool_call>`.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

ExtraFields = Literal["count", "write"]
# The special token before a role's content, by default.
ROLES = {
    "user": "<|user|>",
    "human": "<|user|>",
    "assistant": "<|agent|>",
    "agent": "<|agent|>",
    "gpt": "<|agent|>",
    "system": "<|history|>",
    "history": "<|history|>",
    "developer": "<|history|>",
    "tool": "<|history|>",
    "function": "<|history|>",
    "observation": "<|history|>",
}
LISTS = ("conversations", "messages")
ALPACA = ("instruction", "output")
WRITTEN = ("reasoning_content", "tool_calls", "tools")
NO_TEXT = "parts of a content that are not text"
FORMS = (
    'a conversation is {"messages": [...]} or {"conversations": [...]} of {"role", "content"} or {"from", "value"}, or '
    '{"instruction", "input", "output"}'
)


@dataclass(frozen=True)
class Turn:
    """Hold one message of a role."""

    role: str
    content: str


def turns_of(document: Mapping[str, Any], left_out: Counter[str], extra_fields: ExtraFields) -> list[Turn] | None:
    """Return the turns of a conversation.

    Args:
        document: A line of JSON Lines.
        left_out: Receives the number of fields that are not in the turns, by name.
        extra_fields: `write` puts reasoning, tools and tool calls into the text; other fields are counted.

    Returns:
        The turns; None if the form of the document is unknown.

    Raises:
        ValueError: if a turn lacks a role, or its content is not text.
    """
    key = next((key for key in LISTS if isinstance(document.get(key), list)), None)
    turns: list[Turn] = []
    taken = {"system"}
    if isinstance(document.get("system"), str) and document["system"]:
        turns.append(Turn("system", document["system"]))
    if key is not None:
        taken.add(key)
        for turn in document[key]:
            turns.append(_turn(turn, key, left_out, extra_fields))
    elif all(isinstance(document.get(name), str) for name in ALPACA):
        taken |= {*ALPACA, "input", "history"}
        turns += _alpaca(document)
    else:
        return None
    tools = document.get("tools")
    if extra_fields == "write" and tools:
        taken.add("tools")
        turns = _with_tools(turns, tools)
    _count_others(document, taken, "a conversation", left_out)
    return turns


def _turn(turn: Any, key: str, left_out: Counter[str], extra_fields: ExtraFields) -> Turn:
    names = ("role", "content")
    if isinstance(turn, Mapping) and "from" in turn and "role" not in turn:
        names = ("from", "value")
    role = content = None
    if isinstance(turn, Mapping):
        role, content = turn.get(names[0]), turn.get(names[1])
        if content is None and turn.get("tool_calls"):  # a turn that calls a tool may lack content
            content = ""
        if isinstance(content, list):
            content = _text_of_parts(content, left_out)
    if not isinstance(turn, Mapping) or not isinstance(role, str) or not isinstance(content, str):
        raise ValueError(
            f'a turn of "{key}" must be {{"role": a string, "content": a string}} '
            f'or {{"from": a string, "value": a string}}'
        )
    taken = {*names}
    if extra_fields == "write":
        taken |= set(WRITTEN)
        content = _written(turn, content)
    _count_others(turn, taken, "a turn", left_out)
    return Turn(role, content)


def _text_of_parts(parts: list[Any], left_out: Counter[str]) -> str:
    """Return the text of a content that is a list of parts, as in OpenAI's format with pictures."""
    text = ""
    for part in parts:
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            text += part["text"]
        else:
            left_out[NO_TEXT] += 1
    return text


def _alpaca(document: Mapping[str, Any]) -> list[Turn]:
    turns = []
    for pair in document.get("history") or []:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise ValueError('"history" must be a list of pairs of strings, [[question, answer], ...]')
        turns += [Turn("user", pair[0]), Turn("assistant", pair[1])]
    asked, given = document["instruction"], document.get("input")
    if given is not None and not isinstance(given, str):
        raise ValueError('"input" must be a string')
    if given:
        asked = f"{asked}\n{given}"
    return [*turns, Turn("user", asked), Turn("assistant", document["output"])]


def _written(turn: Mapping[str, Any], content: str) -> str:
    """Return the content of a turn, with its reasoning before it and its tools and tool calls after it."""
    if turn.get("reasoning_content"):
        content = f"<think>\n{_as_text(turn['reasoning_content'])}\n</think>\n{content}"
    if turn.get("tools"):
        content += _tools(turn["tools"])
    for call in _as_list(turn.get("tool_calls")):
        if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
            call = call["function"]
        content += f"\n<tool_call>\n{_as_text(call)}\n</tool_call>"
    return content.removeprefix("\n")


def _with_tools(turns: list[Turn], tools: Any) -> list[Turn]:
    if not turns or turns[0].role != "system":
        turns = [Turn("system", ""), *turns]
    content = (turns[0].content + _tools(tools)).removeprefix("\n")
    return [replace(turns[0], content=content), *turns[1:]]


def _tools(tools: Any) -> str:
    lines = "".join(f"{_as_text(tool)}\n" for tool in _as_list(tools))
    return f"\n<tools>\n{lines}</tools>"


def _as_list(value: Any) -> list[Any]:
    if not value:
        return []
    if isinstance(value, list):
        return value
    return [value]


def _as_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _count_others(of: Mapping[str, Any], taken: set[str], what: str, left_out: Counter[str]) -> None:
    """Count the non-empty fields that are not in the text."""
    for name, value in of.items():
        if name not in taken and value not in (None, "", [], {}):
            left_out[f'"{name}" of {what}'] += 1
