"""Refuse to train a model that sees the tokens it has to predict, and check it again after training."""

import logging
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from samout_train.config import ConfigError, OnLeak, Problem
from samout_train.data import Source
from samout_train.evaluation import Evaluator
from samout_train.evaluation.verify import Leak, find_leak, find_trained_leak
from samout_train.models import sees_future

# Errors that a model may raise for a row that does not come from its training data.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError)
log = logging.getLogger(__name__)


class NotCausalError(ConfigError):
    """A model sees the tokens that it has to predict."""


def require_causal(
    model: nn.Module, source: Source, device: torch.device, *, name: str, on_leak: OnLeak
) -> Leak | None:
    """Refuse a model that is not causal, or warn about it.

    A model that declares that it sees the whole sequence passes: whether the data allows it is checked elsewhere.

    Args:
        model: The model before training, not yet compiled or sharded.
        source: The data that it is trained on.
        device: The model's device.
        name: Name of the model, for the message.
        on_leak: Whether to refuse or to warn.

    Returns:
        Where it sees later tokens; None if it does not.

    Raises:
        NotCausalError: if it does and `on_leak` is `refuse`.
    """
    if sees_future(model):
        return None
    leak = _found(find_leak, model, source, device, name)
    if leak is None:
        return None
    text = _in_words(leak)
    if on_leak == "refuse":
        fix = "mend it, as `samout-train verify` shows, or set on_leak=warn to train it nevertheless"
        raise NotCausalError(Problem("model", name, text=text, fix=fix))
    log.warning("model       %s %s", name, text)
    return leak


def look_again(evaluator: Evaluator, *, name: str) -> Leak | None:
    """Warn about a trained model that is not causal: some leaks show only in trained weights or fused kernels.

    Args:
        evaluator: Evaluator of the trained model, with the kernels and the precision of training.
        name: Name of the model, for the message.

    Returns:
        Where it sees later tokens; None if it does not, or declares that it sees the whole sequence.
    """
    model, source = evaluator.model, evaluator.source
    if sees_future(model):
        return None
    find = partial(find_trained_leak, precision=evaluator.precision)
    leak = _found(find, model, source, evaluator.device, name)
    if leak is not None:
        log.warning("model       %s %s: its losses are not those of a prediction", name, _in_words(leak))
    return leak


def _found(
    find: Callable[..., Leak | None], model: nn.Module, source: Source, device: torch.device, name: str
) -> Leak | None:
    """Return what a check finds; log a warning and return None if the model cannot read the rows of the check.

    If the model cannot read training rows either, training reports that.
    """
    seq_len = min(source.train.seq_len, getattr(model, "max_seq_len", None) or source.train.seq_len)
    try:
        return find(model, vocab_size=source.vocab_size, pad_id=source.pad_id, seq_len=seq_len, device=device)
    except FAILURES as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        log.warning("model       whether %s is causal could not be checked (%s)", name, reason)
    return None


def _in_words(leak: Leak) -> str:
    return (
        f"is not causal: other tokens from position {leak.place} on change its logits at position {leak.position} by "
        f"{leak.change:.2g} (its largest is {leak.largest_logit:.2g}), so it sees the token that it has to predict"
    )
