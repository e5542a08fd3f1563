"""`python -m samout_train [VERB] key=value ...`: hands over to commands/VERB.py."""

import difflib
import importlib
import pkgutil
import sys

from samout_train import commands


def main() -> None:
    """Runs the verb, `train` where there is none, and exits with its code."""
    words = sys.argv[1:]
    verb = words.pop(0) if words and words[0].isidentifier() else "train"
    verbs = sorted(module.name for module in pkgutil.iter_modules(commands.__path__))
    if verb not in verbs:
        close = difflib.get_close_matches(verb, verbs, n=1)
        hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(verbs)}."
        print(f"{verb}: no such verb; {hint} Settings have the form key=value.", file=sys.stderr)
        sys.exit(2)
    try:
        code = importlib.import_module(f"samout_train.commands.{verb}").main(words)
    except KeyboardInterrupt:  # before there was anything to save
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
