"""The text that a bare `samout-train` prints: the verbs, and commands to begin with."""

from collections.abc import Sequence

from omegaconf import OmegaConf

import samout_train
from samout_train.config import CONF

EXAMPLES = """\
samout-train data=python_source              train on the files of Python's own library, about five minutes
samout-train generate run=RUN_DIR prompt=def continue a text with what was trained"""


def overview(verbs: Sequence[str]) -> str:
    """Return the verbs with what each does, and example commands.

    Args:
        verbs: Their names.
    """
    rows = [f"  {verb:<14} {_does(verb)}" for verb in sorted(verbs, key=lambda verb: (verb != "train", verb))]
    return "\n".join(
        [
            f"samout_train {samout_train.__version__}: samout-train [VERB] key=value ...",
            "",
            "Verbs; without one, settings are those of train:",
            *rows,
            "",
            "Examples:",
            *(f"  {line}" for line in EXAMPLES.splitlines()),
            "",
            "The settings of a verb: samout-train VERB --help    The version: samout-train --version",
        ]
    )


def _does(verb: str) -> str:
    """The first line of the verb's help, without the words that name it."""
    root = OmegaConf.load(CONF / f"{'config' if verb == 'train' else verb}.yaml")
    header = str(OmegaConf.select(root, "hydra.help.header")).splitlines()[0]
    return header.removeprefix("samout_train ").removeprefix(f"{verb} ")
