"""Refuse a model that sees the tokens that it has to predict, before it is trained or compared."""

import logging

import torch
from torch import nn

from samout_train.config import ConfigError, OnLeak, Problem
from samout_train.data import Source
from samout_train.evaluation.verify import Leak, find_leak
from samout_train.models import sees_future

log = logging.getLogger(__name__)


class NotCausalError(ConfigError):
    """A model sees the tokens that it has to predict."""


def require_causal(
    model: nn.Module, source: Source, device: torch.device, *, name: str, on_leak: OnLeak
) -> Leak | None:
    """Refuse a model that is not causal, or warn about it.

    A model that declares that it sees the whole sequence passes: whether the data allows it is checked elsewhere.

    Args:
        model: As it begins, before it is compiled or sharded.
        source: The data that it is trained on.
        device: The model's device.
        name: Of the model, for the message.
        on_leak: Whether to refuse or to warn.

    Returns:
        Where it sees later tokens; None if it does not.

    Raises:
        NotCausalError: if it does and `on_leak` is `refuse`.
    """
    if sees_future(model):
        return None
    seq_len = min(source.train.seq_len, getattr(model, "max_seq_len", None) or source.train.seq_len)
    leak = find_leak(model, vocab_size=source.vocab_size, pad_id=source.pad_id, seq_len=seq_len, device=device)
    if leak is None:
        return None
    text = (
        f"is not causal: other tokens from position {leak.place} on change its logits at position {leak.position} by "
        f"{leak.change:.2g} (its largest is {leak.largest_logit:.2g}), so it sees the token that it has to predict"
    )
    if on_leak == "refuse":
        fix = "mend it, as `samout-train verify` shows, or set on_leak=warn to train it nevertheless"
        raise NotCausalError(Problem("model", name, text=text, fix=fix))
    log.warning("model       %s %s", name, text)
    return leak
