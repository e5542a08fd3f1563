"""`python -m samout_train generate run=DIR prompt=TEXT`: text on standard output, all else on standard error."""

import sys
import time
from pathlib import Path
from typing import Annotated

from samout_train.command_line import answered, settings_of
from samout_train.ranges import NonNegative, Positive, Range

TopShare = Range(0, 1, low_included=False)


def keys(
    *,
    run: str,
    prompt: str,
    max_new_tokens: Annotated[int, Positive],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None,
    stop: str | None,
    seed: Annotated[int, NonNegative],
    num_samples: Annotated[int, Positive],
    device: str,
) -> None:
    """The keys of generate.yaml; only its signature is used."""


def main(words: list[str]) -> int:
    """Generates.

    Args:
        words: The command line behind the verb.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged, 2 the request was wrong, 130 interrupted.
    """
    return answered(words, "generate", keys, _generate)


def _generate(words: list[str]) -> int:
    from samout_train.generation import generate_text
    from samout_train.loading import load_run
    from samout_train.runtime import choose_device

    settings = dict(settings_of(words, "generate", keys).config)
    device = choose_device(settings.pop("device"))
    loaded = load_run(settings.pop("run"))
    if loaded.vocabulary is None:
        raise ValueError(f"{loaded.checkpoint} was trained on ids that are no text: there is nothing to generate")
    prompt, num_samples, seed = _read(settings.pop("prompt")), settings.pop("num_samples"), settings.pop("seed")
    model = loaded.model.to(device)
    num_tokens, started = 0, time.perf_counter()
    for number in range(num_samples):
        if num_samples > 1:
            print(f"sample {number + 1}", file=sys.stderr)
        pieces = generate_text(model, loaded.vocabulary, prompt, seed=seed + number, **settings)
        sys.stdout.write(prompt)
        for piece in pieces:
            sys.stdout.write(piece)
            sys.stdout.flush()
            num_tokens += len(loaded.vocabulary.encode(piece, unknown_id=0))
        sys.stdout.write("\n")
        sys.stdout.flush()
    seconds = time.perf_counter() - started
    print(
        f"{num_tokens} tokens, {num_tokens / seconds:,.0f} tokens/s on {device}, the prompt included", file=sys.stderr
    )
    return 0


def _read(prompt: str) -> str:
    if prompt == "-":
        return sys.stdin.read()
    if prompt.startswith("@"):
        try:
            return Path(prompt[1:]).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"prompt={prompt}: cannot be read ({error}): give a UTF-8 file") from error
    return prompt
