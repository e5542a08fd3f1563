"""`python -m samout_train [VERB] key=value ...`: call the function of the verb, or list the verbs."""

import difflib
import importlib
import logging
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from samout_train import __version__, working_directory_last
from samout_train.runtime import (
    UNWRITABLE,
    Launch,
    ensure_home,
    hiding_files,
    ignore_interrupts,
    library_variables,
    lost_output,
    plugin_place,
    treat_hangup_as_termination,
    use_lasting_streams,
    wait_shortly,
)

VERBS = sorted({path.stem for path in Path(__file__).parent.glob("*.py")} - {"__init__", "main", "request", "verb"})
STOPPED_CODES = (130, 143)
QUESTIONS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")
EXAMPLES = """\
  samout-train data=python_source              train on the source of Python's standard library, about five minutes
  samout-train generate run=RUN_DIR prompt=def continue a text with the trained model"""


def main() -> None:
    """Run the verb (`train` if the first word is a setting) and exit with its code."""
    use_lasting_streams()
    treat_hangup_as_termination()
    wait_shortly()
    ensure_home()
    try:
        Path.cwd()
    except OSError:
        print("the working directory no longer exists: change to another one", file=sys.stderr)
        sys.exit(2)
    working_directory_last()
    words = sys.argv[1:]
    verbs = list(VERBS)
    if not words:
        print(overview(verbs))
        sys.exit(_of_the_output(0, is_all=True))
    verb = words.pop(0) if words and words[0].isidentifier() else "train"
    if "-sc" in words or "--shell-completion" in words:
        verb = _verb_being_completed(verbs) or verb
    if verb not in verbs:
        close = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"there are: {', '.join(verbs)}."
        if close:
            hint = f"did you mean {close[0]}?"
        print(f"{verb}: no such verb; {hint} Settings have the form key=value.", file=sys.stderr)
        sys.exit(2)
    if verb != "train" and (launch := Launch.of_environment()) is not None:
        if launch.is_first:
            print(f"{verb}: does not run distributed: start it without torchrun", file=sys.stderr)
        sys.exit(2)
    logging.raiseExceptions = False  # a run continues if its log cannot be written
    try:
        code = getattr(importlib.import_module(f"samout_train.cli.{verb}"), verb)(words)
    except SystemExit as ended:  # raised by Hydra and argparse, for example after --help
        code = 0
        if ended.code is not None:
            code = ended.code
    except KeyboardInterrupt:  # before the run had anything to save
        code = 130
    except Exception as error:
        code = _of_the_environment(error)
    if code in STOPPED_CODES:  # another interrupt would cut off the last messages
        ignore_interrupts()
    # The other verbs also write their results to files, or report them in the exit code.
    is_all = verb == "generate" or any(word.partition("=")[0] in QUESTIONS for word in words)
    code = _of_the_output(code, is_all=is_all)
    if any(getattr(thread, "cannot_end", False) for thread in threading.enumerate()):
        logging.shutdown()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    sys.exit(code)


def overview(verbs: Sequence[str]) -> str:
    """Return the list of verbs, one line for each, and example commands."""
    lines = [
        f"samout_train {__version__}: samout-train [VERB] key=value ...",
        "",
        "Verbs; without one, settings are those of train:",
    ]
    for verb in sorted(verbs, key=lambda verb: (verb != "train", verb)):
        lines.append(f"  {verb:<14} {_does(verb)}")
    lines += [
        "",
        "Examples:",
        EXAMPLES,
        "",
        "The settings of a verb: samout-train VERB --help    The version: samout-train --version",
    ]
    return "\n".join(lines)


def _of_the_output(code: int | str, *, is_all: bool) -> int | str:
    """Return the exit code, and report standard output that could not be written.

    Args:
        code: The exit code of the verb.
        is_all: Whether standard output is the only result, so that losing it is a failure.
    """
    sys.stdout.flush()
    lost = lost_output()
    if lost is None or lost.errno not in UNWRITABLE:
        return code
    print(f"standard output: is incomplete ({lost.strerror}): redirect it elsewhere", file=sys.stderr)
    return code or int(is_all)


def _of_the_environment(error: Exception) -> int:
    """Report what in the environment keeps a module from being imported.

    Raises:
        Exception: the error itself, if the environment does not explain it.
    """
    hiding = []
    if isinstance(error, ImportError | AttributeError):
        hiding = hiding_files()
    variables, plugin = library_variables(error), plugin_place(error)
    if not hiding and not variables and plugin is None:
        raise error
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    print(f"{type(error).__name__}: {first}", file=sys.stderr)
    if plugin is not None:
        print(f"{plugin}: this Hydra plugin cannot be imported: fix it, or move it out of that folder", file=sys.stderr)
        return 2
    for file in hiding:
        print(f"{file}: hides a module of the same name that the program needs: rename it", file=sys.stderr)
    if variables and not hiding:
        shown = ", ".join(f"{name}={os.environ[name]}" for name in variables)
        print(f"{shown}: a library that reads this cannot be imported with it: unset it", file=sys.stderr)
    return 2


def _verb_being_completed(verbs: list[str]) -> str | None:
    """Complete a verb for the shell. Return a complete verb, and hide it from Hydra, which completes only settings."""
    program, _, rest = os.environ.get("COMP_LINE", "").partition(" ")
    first, space, behind = rest.lstrip().partition(" ")
    if space and first in verbs:
        os.environ["COMP_LINE"] = f"{program} {behind}"
        return first
    if program and not space:
        for verb in verbs:
            if verb.startswith(first):
                print(verb)
    return None


def _does(verb: str) -> str:
    """Return the first line of the verb's help, without the words that name it."""
    from omegaconf import OmegaConf

    from samout_train.config import CONF

    name = "config" if verb == "train" else verb
    root = OmegaConf.load(CONF / f"{name}.yaml")
    header = str(OmegaConf.select(root, "hydra.help.header")).splitlines()[0]
    return header.removeprefix("samout_train ").removeprefix(f"{verb} ")
