"""Refuse, before the first run, a comparison with a model that sees the tokens it has to predict."""

import logging
from collections.abc import Sequence

import torch

from samout_train.config import ConfigError, Problem, build
from samout_train.data import Source
from samout_train.experiments.compare.candidates import Candidate
from samout_train.runtime import seed_everything
from samout_train.training import NotCausalError, require_causal, source_from

log = logging.getLogger(__name__)


def require_causal_models(candidates: Sequence[Candidate]) -> None:
    """Build each model at its size and check that it is causal; its runs check it again, on their device.

    With `on_leak=warn`, nothing is checked here: the runs record leaks, and the page names them first.

    Args:
        candidates: The models of a comparison.

    Raises:
        ConfigError: if some are not causal; it lists each of them.
    """
    problems: list[Problem] = []
    sources: dict[str, Source] = {}
    for one in candidates:
        if one.config.get("on_leak", "refuse") != "refuse":
            continue
        try:
            if one.data not in sources:
                sources[one.data] = source_from(one.config)
            source = sources[one.data]
            seed_everything(one.config["seed"])
            model = build(one.config["model"], vocab_size=source.vocab_size, pad_id=source.pad_id)
            require_causal(model, source, torch.device("cpu"), name=one.label, on_leak="refuse")
        except NotCausalError as error:
            problems += error.problems
        except Exception as error:  # a model that does not fit or cannot be built: its runs fail with the reason
            log.debug("%s: not checked: %s", one.label, error)
    if problems:
        raise ConfigError(*problems)
