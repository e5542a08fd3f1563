"""Hold a conversation with a model; its state is carried from turn to turn, so that no token is read twice.

A conversation is the tokens `<|user|>` question `<|agent|>` answer `<|user|>` ..., preceded by `<|history|>` and the
system's message, as `data=jsonl` writes them (`Template`). An answer ends when the model draws a role's token.
"""

# V vocabulary

import codecs
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from samout_train.config import NonNegative, Penalty, Positive, TopShare, validated
from samout_train.data import PAD_ID, ROLES, SOS_ID, SPECIAL_TOKENS, LineEnds, Turn, Vocabulary
from samout_train.evaluation.generate import Decoder, GeneratorSeed, choose, prefill
from samout_train.models import evaluating
from samout_train.runtime import float64_place

USER_ID, AGENT_ID, HISTORY_ID = (SPECIAL_TOKENS.index(f"<|{name}|>") for name in ("user", "agent", "history"))
NEVER_DRAWN = [PAD_ID]


@validated
@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Hold the settings for drawing tokens.

    Args:
        temperature: 0 takes the most probable token; otherwise logits are divided by it.
        top_k: Draw among this many most probable tokens only; None for all.
        top_p: Draw among the most probable tokens that together have this probability; None for all.
        repetition_penalty: Logits of recent tokens are divided by it where positive and multiplied by it where
            negative (CTRL, arXiv 1909.05858); 1 for none.
        penalty_window: Number of last tokens that count as recent.
        max_new_tokens: Limit of an answer's tokens.
        seed: Seed of the first answer's draws; each further answer has the next seed.
    """

    temperature: Annotated[float, NonNegative] = 0.8
    top_k: Annotated[int, Positive] | None = None
    top_p: Annotated[float, TopShare] | None = None
    repetition_penalty: Annotated[float, Penalty] = 1.0
    penalty_window: Annotated[int, Positive] = 64
    max_new_tokens: Annotated[int, Positive] = 512
    seed: Annotated[int, GeneratorSeed] = 0

    def draw(self, logits_V: Tensor, recent_ids: Sequence[int], generator: torch.Generator) -> int:
        """Draw the next id.

        Args:
            logits_V: Logits of one sequence, of any floating dtype.
            recent_ids: All ids so far.
            generator: On the CPU, or on the model's device if that has float64.
        """
        logits_V = logits_V.to(generator.device).to(torch.float64, copy=True)
        recent = [index for index in recent_ids[-self.penalty_window :] if index >= len(SPECIAL_TOKENS)]
        if self.repetition_penalty != 1 and recent:
            penalise(logits_V, recent, self.repetition_penalty)
        chosen = choose(
            logits_V,
            generator,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            banned_ids=NEVER_DRAWN,
        )
        return int(chosen)


def penalise(logits_V: Tensor, ids: Sequence[int], penalty: float) -> None:
    """Make ids less probable, each once, in place. Source: CTRL, arXiv 1909.05858, section 4.1, here for any sign."""
    place = torch.tensor(sorted(set(ids)), device=logits_V.device)
    given = logits_V[place]
    logits_V[place] = torch.where(given > 0, given / penalty, given * penalty)


@dataclass(frozen=True)
class _Mark:
    """Hold a place in a conversation that `undo` restores."""

    num_ids: int
    num_turns: int
    fed: int
    state: Any


@dataclass(frozen=True, kw_only=True)
class Template:
    """Write conversations as tokens, as the training data of a model does.

    Args:
        begins_with_sos: Whether a conversation begins with `<|sos|>`, as in packed rows.
        line_ends: `fold` turns CRLF and CR of messages into LF.
        roles: The special token before a role's messages, by role.
    """

    begins_with_sos: bool = False
    line_ends: LineEnds = "keep"
    roles: Mapping[str, str] = field(default_factory=lambda: ROLES)

    @classmethod
    def of(cls, data_node: Mapping[str, Any], line_ends: LineEnds = "keep") -> "Template":
        """Return the template of a run, from the `data` of its configuration, whose roles add to the default ones."""
        roles = ROLES | dict(data_node.get("roles") or {})
        return cls(begins_with_sos=data_node.get("layout") == "packed", line_ends=line_ends, roles=roles)

    @property
    def begin(self) -> list[int]:
        """Return the tokens before the first turn."""
        return [SOS_ID] if self.begins_with_sos else []

    @property
    def answer(self) -> list[int]:
        """Return the tokens before an answer."""
        return [self._id_of("assistant")]

    def ids_of(self, turns: Sequence[Turn], vocabulary: Vocabulary) -> list[int]:
        """Return the tokens of turns, each turn preceded by the token of its role.

        Raises:
            ValueError: if a role is unknown, or the vocabulary lacks a character.
        """
        ids: list[int] = []
        for turn in turns:
            ids += [self._id_of(turn.role), *self.ids_of_text(turn.content, vocabulary)]
        return ids

    def ids_of_text(self, text: str, vocabulary: Vocabulary) -> list[int]:
        """Return the tokens of a text.

        Raises:
            ValueError: if the vocabulary lacks a character.
        """
        if self.line_ends == "fold":
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        ids: list[int] = vocabulary.encode(text).tolist()
        return ids

    def _id_of(self, role: str) -> int:
        if role not in self.roles:
            raise ValueError(f"role {role!r} is unknown: there are {', '.join(self.roles)}")
        return SPECIAL_TOKENS.index(self.roles[role])


class Conversation:
    """Hold a conversation, and the model's state after the tokens that it has read so far.

    Args:
        model: Called as `logits, state = model(ids, state)`.
        vocabulary: The vocabulary that it was trained with.
        template: How a conversation is written as tokens.

    Attributes:
        turns: The messages so far.
        ids: All tokens so far.
        fed: Number of them that the model has read.
        was_cut: Whether the last answer ended at `max_new_tokens`.
    """

    def __init__(self, model: nn.Module, vocabulary: Vocabulary, template: Template) -> None:
        self.model, self.vocabulary, self.template = model, vocabulary, template
        self.reset()

    def reset(self, system: str | None = None) -> None:
        """Start a new conversation.

        Args:
            system: The system's message; None for no message.

        Raises:
            ValueError: if the vocabulary lacks a character of it; nothing is changed then.
        """
        turns = [] if system is None else [Turn("system", system)]
        ids = self.template.begin + self.template.ids_of(turns, self.vocabulary)
        self.turns, self.ids, self.fed = turns, ids, 0
        self._state: Any = None
        self._marks: list[_Mark] = []
        self.was_cut = False

    def load(self, turns: Sequence[Turn]) -> None:
        """Replace the conversation by another one; its tokens are read with the next answer.

        Raises:
            ValueError: if a role is unknown, or the vocabulary lacks a character; nothing is changed then.
        """
        ids = self.template.begin + self.template.ids_of(turns, self.vocabulary)
        self.turns, self.ids, self.fed = list(turns), ids, 0
        self._state, self._marks, self.was_cut = None, [], False

    def undo(self) -> bool:
        """Take back the last question and its answer; return whether there was one."""
        if self._marks:
            mark = self._marks.pop()
            self.turns, self.ids = self.turns[: mark.num_turns], self.ids[: mark.num_ids]
            self.fed, self._state = mark.fed, mark.state
            return True
        asked = [number for number, turn in enumerate(self.turns) if turn.role == "user"]
        if asked:  # the conversation was loaded, so the model reads it again
            self.load(self.turns[: asked[-1]])
        return bool(asked)

    def state_bytes(self) -> int:
        """Return the bytes of the model's state after the tokens that it has read."""
        model: Any = self.model
        return int(model.state_bytes(self.fed))

    def answer(self, text: str, sampling: Sampling, *, stops: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Add a message of the user, and yield the answer in pieces of whole characters.

        Mistakes in the message are raised at once. If the answer is stopped, or its iteration ends early, the part
        drawn so far is kept as the answer.

        Args:
            text: The message.
            sampling: How tokens are drawn.
            stops: Called before each token; true ends the answer.

        Raises:
            ValueError: if the vocabulary lacks a character, or the model has no room for the answer's first token.
        """
        asked = [Turn("user", text)]
        ids = self.template.ids_of(asked, self.vocabulary) + self.template.answer
        room = getattr(self.model, "max_seq_len", None)
        if room is not None and len(self.ids) + len(ids) >= room:
            raise ValueError(
                f"the conversation has {len(self.ids) + len(ids)} tokens, and this model has room for {room}"
            )
        self._marks.append(_Mark(len(self.ids), len(self.turns), self.fed, self._state))
        self.turns += asked
        self.ids += ids
        self.was_cut = False
        return self._answer(sampling, stops)

    def _answer(self, sampling: Sampling, stops: Callable[[], bool]) -> Iterator[str]:
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        drawn = ""
        try:
            for index in self._drawn(sampling, stops):
                piece = decoder.decode(self.vocabulary.to_bytes([index]))
                drawn += piece
                if piece:
                    yield piece
            if piece := decoder.decode(b"", final=True):
                drawn += piece
                yield piece
        finally:
            self.turns.append(Turn("assistant", drawn))

    def _drawn(self, sampling: Sampling, stops: Callable[[], bool]) -> Iterator[int]:
        """Yield the answer's tokens; the model reads the last one before the next question."""
        place = float64_place(next(self.model.parameters()).device)
        number = sum(turn.role == "user" for turn in self.turns) - 1
        generator = torch.Generator(place).manual_seed((sampling.seed + number) % 2**64)
        room = getattr(self.model, "max_seq_len", None)
        with evaluating(self.model, inference=False):
            logits_BV, self._state = prefill(self.model, self.ids[self.fed :], self._state)
            self.fed = len(self.ids)
            decoder, reads = Decoder(self.model, self._state), False
            try:
                for made in range(sampling.max_new_tokens):
                    if stops():
                        break
                    if self.fed < len(self.ids):
                        reads = True
                        logits_BV = decoder(torch.tensor([self.ids[-1:]], device=logits_BV.device))
                        self.fed, reads = len(self.ids), False
                    index = sampling.draw(logits_BV[0], self.ids, generator)
                    if index < len(SPECIAL_TOKENS):
                        break
                    self.ids.append(index)
                    self.was_cut = made + 1 == sampling.max_new_tokens or len(self.ids) == room
                    yield index
                    if self.was_cut:
                        break
            finally:
                self._state = decoder.state
                if reads:  # the model failed in the middle of a token, so everything is read again
                    self.fed, self._state = 0, None


def as_json(turns: Sequence[Turn]) -> str:
    """Return turns as JSON in OpenAI's form."""
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps({"messages": messages}, ensure_ascii=False, indent=1)


def turns_of_json(text: str) -> list[Turn]:
    """Return the turns of JSON in OpenAI's form.

    Raises:
        ValueError: if it is something else.
    """
    try:
        content = json.loads(text)
        turns = []
        for message in content["messages"]:
            if not isinstance(message["role"], str) or not isinstance(message["content"], str):
                raise TypeError
            turns.append(Turn(message["role"], message["content"]))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ValueError('is no conversation: {"messages": [{"role": ..., "content": ...}, ...]}') from error
    return turns
