"""`python -m samout_train chat run=DIR`: hold a conversation in the terminal, or line by line from a pipe."""

import codecs
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.verb import verb
from samout_train.config import DeviceName, NonNegative, Penalty, Positive, Seed, Threads, TopShare
from samout_train.runtime import home_path, input_as_utf_8, lost_output, replace_file

if TYPE_CHECKING:
    from samout_train.evaluation import Conversation, Sampling

CTRL_D = "\x04"  # Windows gives this character to the program, and ends the input with Ctrl-Z
HELP = """\
/undo          take back the last question and its answer
/reset         start a new conversation; the system's words stay
/system TEXT   start a new conversation with these words of the system; without TEXT, with none
/save FILE     write the conversation to a file, as JSON in OpenAI's form
/load FILE     continue the conversation of a file
/help          this
/quit          end, as Ctrl-D does; Ctrl-C stops an answer"""


@verb
def chat(
    *,
    run: str,
    system: str | None,
    max_new_tokens: Annotated[int, Positive],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None,
    repetition_penalty: Annotated[float, Penalty],
    penalty_window: Annotated[int, Positive],
    seed: Annotated[int, Seed],
    device: DeviceName,
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None,
) -> int:
    """Holds a conversation with a trained model, in the terminal or line by line from a pipe.

    Returns:
        The exit code: 0 done, 1 a checkpoint is damaged or a line could not be answered, 2 the request was wrong.
    """
    from samout_train.checkpoint import load_trained
    from samout_train.evaluation import Conversation, Sampling, Template
    from samout_train.ops import use_kernels
    from samout_train.runtime import use_device

    on = use_device(device, threads)
    use_kernels(kernels)
    loaded = load_trained(run)
    template = Template.of(loaded.data_node, loaded.line_ends)
    conversation = Conversation(loaded.model.to(on), loaded.require_vocabulary(), template)
    if system is not None:
        try:
            conversation.reset(system)
        except ValueError as error:
            raise ValueError(f"system={system}: {error}") from error
    sampling = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        penalty_window=penalty_window,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    if sys.stdin.isatty():
        print(f"{loaded.checkpoint}, step {loaded.step}, on {on}. /help lists the commands.", file=sys.stderr)
        return _in_terminal(conversation, sampling)
    return _from_pipe(conversation, sampling)


def _in_terminal(conversation: "Conversation", sampling: "Sampling") -> int:
    """Read and answer lines until the end of the input; report a line that is wrong, and leave the chat unchanged."""
    read = _line_reader()
    while True:
        try:
            line = read()
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D ends the chat", file=sys.stderr)
            continue
        except EOFError:
            print(file=sys.stderr)
            return 0
        if line.strip() in ("/quit", CTRL_D):
            return 0
        try:
            if line.startswith("/"):
                print(command(conversation, line), file=sys.stderr)
            elif line.strip():
                _stream(conversation, sampling, line)
        except ValueError as error:
            print(error, file=sys.stderr)


def _stream(conversation: "Conversation", sampling: "Sampling", line: str) -> None:
    """Write an answer as it is drawn; Ctrl-C ends the answer, not the chat."""
    with _interrupts() as stopped:
        for piece in conversation.answer(line, sampling, stops=stopped):
            sys.stdout.write(piece)
            sys.stdout.flush()
        sys.stdout.write("\n")
        sys.stdout.flush()
        if stopped():
            print("(stopped)", file=sys.stderr)
        elif conversation.was_cut:
            print(f"(cut off: max_new_tokens={sampling.max_new_tokens})", file=sys.stderr)


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Note Ctrl-C instead of raising it; yield a function that returns whether it was pressed."""
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        noted.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(noted)
    finally:
        signal.signal(signal.SIGINT, before)


def _from_pipe(conversation: "Conversation", sampling: "Sampling") -> int:
    """Answer each line of standard input with one line of standard output; the results of commands go to stderr."""
    code = 0
    for number, content in enumerate(sys.stdin.buffer, 1):
        line = ""
        try:
            line = _line_of(content, number)
            if line.strip() == "/quit":
                break
            if line.startswith("/"):
                print(command(conversation, line), file=sys.stderr)
                continue
            answer = "".join(conversation.answer(line, sampling))
        except ValueError as error:
            print(error, file=sys.stderr)
            answer, code = "", 1
            if line.startswith("/"):
                continue
        print(one_line(answer), flush=True)
        if lost_output() is not None:  # the reader has closed the pipe
            return 0
    return code


def _line_of(content: bytes, number: int) -> str:
    """Return a line of standard input without its end.

    Args:
        content: Its bytes.
        number: Its number; the first may begin with a byte order mark.

    Raises:
        ValueError: if it can be read neither as UTF-8 nor in the encoding of standard input.
    """
    content = content.removesuffix(b"\n").removesuffix(b"\r")
    if number == 1:
        content = content.removeprefix(codecs.BOM_UTF8)
    try:
        return input_as_utf_8(content).decode()
    except UnicodeDecodeError as error:
        place = f"byte {content[error.start]:#04x} at position {error.start}"
        raise ValueError(f"line {number} of standard input: {place} is not UTF-8: write it in UTF-8") from error


def one_line(text: str) -> str:
    r"""Return a text with line ends as \n and \r, and a backslash as two."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def command(conversation: "Conversation", line: str) -> str:
    """Execute a line that begins with a slash.

    Returns:
        A description of what was done.

    Raises:
        ValueError: if the command is unknown or fails; the conversation is then unchanged.
    """
    from samout_train.evaluation import as_json, turns_of_json

    name, _, rest = line.strip().partition(" ")
    rest = rest.strip()
    if name == "/help":
        return HELP
    if name == "/undo":
        return "taken back" if conversation.undo() else "there is nothing to take back"
    if name == "/reset":
        first = conversation.turns[:1]
        conversation.reset(first[0].content if first and first[0].role == "system" else None)
        return "started a new conversation"
    if name == "/system":
        conversation.reset(rest or None)
        return "started a new conversation"
    if name in ("/save", "/load") and not rest:
        raise ValueError(f"{name}: give a file: {name} FILE")
    try:
        if name == "/save":
            content = as_json(conversation.turns).encode("utf-8")
            replace_file(home_path(rest), lambda file: file.write(content))
            return f"saved {len(conversation.turns)} turns"
        if name == "/load":
            conversation.load(turns_of_json(Path(home_path(rest)).read_text(encoding="utf-8-sig")))
            return f"loaded {len(conversation.turns)} turns"
    except OSError as error:
        raise ValueError(f"{line}: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{line}: {error}") from error
    raise ValueError(f"{name}: no such command; /help lists them")


def _line_reader() -> Callable[[], str]:
    """Return a function that reads a line with editing and history: prompt_toolkit's if installed, else readline's."""
    prompt = "> "
    try:
        from prompt_toolkit import PromptSession
    except ImportError:
        _edit_lines()
        return lambda: input(prompt)
    session: Any = PromptSession()
    return lambda: str(session.prompt(prompt))


def _edit_lines() -> None:
    """Let input() edit lines and keep a history, where the system has readline."""
    try:
        import readline  # noqa: F401  importing it enables editing
    except ImportError:
        return
