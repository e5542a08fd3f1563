"""`python -m samout_train generate run=DIR prompt=TEXT`: write text to standard output, the rest to standard error."""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from itertools import takewhile, tee
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.verb import verb
from samout_train.config import DeviceName, NonNegative, Positive, Seed, Threads, TopShare
from samout_train.runtime import home_path, input_as_utf_8, lost_output, text_of_word

LARGEST_PROMPT, PIECE = 1 << 26, 1 << 20  # bytes
SAMPLE_BYTES = 5_000  # of a sample's random generator, in Python and in torch
TOKEN_BYTES = 8  # of a token that is not yet written

if TYPE_CHECKING:
    import torch

    from samout_train.checkpoint import LoadedRun
    from samout_train.data import LineEnds, Vocabulary
    from samout_train.evaluation import Timed


@verb
def generate(
    *,
    run: str,
    prompt: str,
    max_new_tokens: Annotated[int, Positive],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None,
    stop: str | None,
    seed: Annotated[int, Seed],
    num_samples: Annotated[int, Positive],
    chat: bool,
    weights: Literal["last", "ema"],
    device: DeviceName,
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None,
) -> int:
    """Continues a text with a trained model, token by token from its carried state.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged, 2 the request was wrong, 130 interrupted.
    """
    from samout_train.checkpoint import load_trained
    from samout_train.data import SPECIAL_TOKENS
    from samout_train.evaluation import NEVER_DRAWN, Timed, generate_samples
    from samout_train.ops import use_kernels
    from samout_train.runtime import use_device

    on = use_device(device, threads)
    use_kernels(kernels)
    loaded = load_trained(run, weights=weights)
    vocabulary = loaded.require_vocabulary()
    text = _read(prompt, loaded.line_ends)
    stop = stop and text_of_word(stop)
    banned_ids: Sequence[int] = range(len(SPECIAL_TOKENS))
    if chat:
        prompt_ids, banned_ids = _turns(loaded, text, prompt), NEVER_DRAWN
    else:
        prompt_ids = _encoded(vocabulary, text, prompt)
    _require_memory(loaded, len(prompt_ids), num_samples, max_new_tokens, on)
    timed = Timed()
    rows = generate_samples(
        loaded.model.to(on),
        prompt_ids,
        num_samples=num_samples,
        seed=seed,
        banned_ids=banned_ids,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    if not _write(text, timed(rows), vocabulary, num_samples=num_samples, stop=stop):
        return 0
    print(f"{_speed(timed, len(prompt_ids), num_samples)}, on {on}", file=sys.stderr)
    return 0


def _write(
    text: str, rows: Iterable[list[int]], vocabulary: "Vocabulary", *, num_samples: int, stop: str | None
) -> bool:
    """Write the prompt and each sample after it, and return whether standard output took all of it.

    Samples are generated side by side: the first is written as it is generated, the others afterwards.
    """
    from samout_train.data import SPECIAL_TOKENS
    from samout_train.evaluation import text_of

    for number, column in enumerate(tee(rows, num_samples)):
        if num_samples > 1:
            print(f"sample {number + 1}", file=sys.stderr)
        sys.stdout.write(text)
        # An answer ends at a role token. Without chat=true, none is drawn.
        ids = takewhile(lambda index: index >= len(SPECIAL_TOKENS), (row[number] for row in column))
        for piece in text_of(vocabulary, ids, stop=stop):
            sys.stdout.write(piece)
            sys.stdout.flush()
            if lost_output() is not None:  # the reader has closed the pipe
                return False
        sys.stdout.write("\n")
        sys.stdout.flush()
    return True


def _encoded(vocabulary: "Vocabulary", prompt: str, given: str) -> list[int]:
    from samout_train.data import UnknownCharacterError

    try:
        ids: list[int] = vocabulary.encode(prompt).tolist()
    except ValueError as error:
        fix = "leave it out, or write it with characters that the text of the run has"
        if isinstance(error, UnknownCharacterError) and error.character == "\r":
            fix = "save the prompt with LF line ends, as the text of the run has"
        raise ValueError(f"prompt={given}: {error}: {fix}") from error
    return ids


def _turns(loaded: "LoadedRun", prompt: str, given: str) -> list[int]:
    """Return the tokens of the conversation before an answer.

    A role token's name in the prompt stands for that token. A prompt without any is a user's message. The agent's turn
    is opened unless it is the last one in the prompt.
    """
    from samout_train.data import SPECIAL_TOKENS
    from samout_train.evaluation import Template

    vocabulary, template = loaded.require_vocabulary(), Template.of(loaded.data_node)
    names = ("<|user|>", "<|agent|>", "<|history|>")
    if not any(name in prompt for name in names):
        prompt = f"{template.roles['user']}{prompt}"
    if max(names, key=prompt.rfind) != template.roles["assistant"]:
        prompt += template.roles["assistant"]
    ids = template.begin
    for part in re.split("(" + "|".join(map(re.escape, names)) + ")", prompt):
        if part in names:
            ids.append(SPECIAL_TOKENS.index(part))
        elif part:
            ids += _encoded(vocabulary, part, given)
    return ids


def _speed(timed: "Timed", prompt_tokens: int, num_samples: int) -> str:
    later = timed.later_seconds
    num_tokens = num_samples * (len(timed.first_seconds) + len(later))
    line = f"prompt: {prompt_tokens} tokens in {sum(timed.first_seconds):.3f} s; text: {num_tokens} tokens"
    if later:
        line += f", {num_samples * len(later) / sum(later):,.0f} tokens/s"
    return line


def _content(file: IO[bytes]) -> bytes:
    """Return the content of a file, which may be a pipe that never ends.

    Raises:
        ValueError: if it exceeds LARGEST_PROMPT.
    """
    content = bytearray()
    while piece := file.read(PIECE):
        content += piece
        if len(content) > LARGEST_PROMPT:
            raise ValueError(f"has more than {LARGEST_PROMPT:,} bytes (64 MiB): give a shorter prompt")
    return bytes(content)


def _require_memory(
    loaded: "LoadedRun", prompt_tokens: int, num_samples: int, max_new_tokens: int, device: "torch.device"
) -> None:
    """Raise ValueError for counts that do not fit into memory: each sample has a state, logits and tokens."""
    import torch

    from samout_train.runtime import too_large

    model: Any = loaded.model
    one = model.state_bytes(prompt_tokens) + SAMPLE_BYTES + 4 * loaded.vocab_size
    if lacks := too_large(num_samples * one, device):
        raise ValueError(f"num_samples={num_samples}: {lacks}: choose fewer")
    if lacks := too_large(num_samples * max_new_tokens * TOKEN_BYTES, torch.device("cpu")):
        raise ValueError(f"max_new_tokens={max_new_tokens}: {lacks}: choose fewer")


def _read(prompt: str, line_ends: "LineEnds") -> str:
    """Return the prompt; `@FILE` is read from a file, `-` from standard input, with the run's line ends."""
    from samout_train.data import text_of

    try:
        if prompt == "-":
            with os.fdopen(0, "rb", closefd=False) as standard_input:
                return text_of("standard input", input_as_utf_8(_content(standard_input)), line_ends)
        if prompt.startswith("@"):
            with home_path(prompt[1:]).open("rb") as file:
                return text_of(prompt[1:], _content(file), line_ends)
        return text_of_word(prompt)
    except (OSError, UnicodeError, RuntimeError) as error:  # RuntimeError: ~USER has no home directory
        raise ValueError(f"prompt={prompt}: cannot be read ({error}): give UTF-8 text") from error
    except ValueError as error:
        raise ValueError(f"prompt={prompt}: {error}") from error
