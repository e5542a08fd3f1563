"""Models to verify, with their sizes, tokens and losses."""

# B batch, T time, V vocabulary

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.dropout import _DropoutNd

from samout_train.config import build
from samout_train.models import sees_future

Node = dict[str, Any]
VOCAB_SIZE, PAD_ID = 37, 3
SIZES = {"hidden_size": 48, "num_layers": 3, "num_heads": 4}
TINY = {"hidden_size": 16, "num_layers": 2, "num_heads": 4, "max_seq_len": 64}
NUM_TOKENS = 1040  # past the end of a tile of 1,024
LEAST_TOKENS = 4
QUIET_IDS = 4


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to verify.

    Args:
        build: Builds the model, with new or trained weights.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None for no padding.
        most_tokens: The longest sequence that it accepts; None for any length.
        trained: Whether the weights are trained and must stay unchanged.

    Raises:
        ValueError: if a sequence is too short to verify anything.
    """

    build: Callable[[], nn.Module]
    vocab_size: int
    pad_id: int | None
    most_tokens: int | None = None
    trained: bool = False

    def __post_init__(self) -> None:
        if self.most_tokens is not None and self.most_tokens < LEAST_TOKENS:
            raise ValueError(f"max_seq_len ({self.most_tokens}) is too short to verify: set {LEAST_TOKENS} or more")

    def model(self, device: torch.device, *, as_trained: bool = False, seed: int = 0) -> nn.Module:
        """Return a model without dropout; new models have embeddings of standard deviation 1.

        With small embeddings, the first layer's contribution would be too small for any bound to notice an error in it.

        Args:
            device: The model's device.
            as_trained: Whether to keep the embeddings that training starts from.
            seed: Seed of new weights.
        """
        torch.manual_seed(seed)
        model = self.build().to(device)
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            if isinstance(module, nn.Embedding) and not (self.trained or as_trained):
                module.reset_parameters()  # torch's N(0, 1), with a padding row of zeros
        return model

    def tokens(self, most: int = NUM_TOKENS) -> int:
        """Return `most`, or the longest sequence that the model accepts if that is shorter."""
        return min(most, self.most_tokens or most)

    def ids(self, rows: int, time: int, device: torch.device) -> Tensor:
        """Return (B, T) random ids without padding."""
        usable_V = self._usable()
        return usable_V[torch.randint(len(usable_V), (rows, time), generator=_generator())].to(device)

    def quiet_and_other_ids(self, time: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return two sequences, (T), without a common id; the first has few different ids.

        A maximum reveals a later token only if that exceeds all earlier ones, which is likelier with few different ids.
        """
        usable_V, generator = self._usable(), _generator()
        few = min(QUIET_IDS, len(usable_V) // 2)
        quiet_T = usable_V[torch.randint(few, (time,), generator=generator)]
        other_T = usable_V[torch.randint(few, len(usable_V), (time,), generator=generator)]
        return quiet_T.to(device), other_T.to(device)

    def _usable(self) -> Tensor:
        ids_V = torch.arange(self.vocab_size)
        if self.pad_id is None:
            return ids_V
        return ids_V[ids_V != self.pad_id]


Subject = ModelUnderTest  # its earlier name


def sized(node: Node, typed: Collection[str] = ()) -> Node:
    """Return a model's settings with the sizes used to verify it.

    Each mixer of its pattern has a layer, unless the user has set the number of layers.

    Args:
        node: The `model` of a configuration.
        typed: Keys that the user has set, which stay.
    """
    sizes = dict(SIZES)
    if _is_without_head(node):
        sizes["hidden_size"] = VOCAB_SIZE
    changed = _with(node, {key: size for key, size in sizes.items() if key not in typed})
    if "num_layers" in typed:
        return changed
    return _with_mixers(changed, pattern_of(node))


def models_under_test(node: Node) -> tuple[ModelUnderTest, ModelUnderTest]:
    """Return the arguments of `verify` for an untrained model: the model, and a tiny one of the same kind.

    Args:
        node: The `model` of a configuration, with the sizes used to verify it.
    """
    # Without a head the logits are a hidden state within -1 and 1, which cannot memorise a batch.
    changes: Node = dict(TINY)
    if _is_without_head(node):
        changes["head"] = "linear"
    tiny = _with_mixers(_with(node, changes), _mixers_of_layers(node))
    model = ModelUnderTest(lambda: _built(node, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID, node.get("max_seq_len"))
    return model, ModelUnderTest(lambda: _built(tiny, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID)


def trained_models_under_test(
    node: Node, weights: Mapping[str, Tensor], *, vocab_size: int, pad_id: int | None
) -> tuple[ModelUnderTest, ModelUnderTest]:
    """Return the arguments of `verify` for a trained model: the model unchanged, and a tiny new one of the same kind.

    Args:
        node: The `model` of its configuration.
        weights: Its state dict.
        vocab_size: Number of ids V that it was trained with.
        pad_id: Id of the padding; None for no padding.
    """

    def trained() -> nn.Module:
        model = _built(node, vocab_size, pad_id)
        model.load_state_dict(weights)
        return model

    model = ModelUnderTest(trained, vocab_size, pad_id, node.get("max_seq_len"), trained=True)
    return model, models_under_test(node)[1]


def pattern_of(node: Node) -> list[str]:
    """Return the names of the mixers that repeat over a model's layers; empty for a model with one mixer.

    Args:
        node: The `model` of a configuration, which may have mistakes.
    """
    pattern: Any = node.get("pattern")
    is_one = isinstance(pattern, list) and all(isinstance(name, str) for name in pattern)
    if is_one and "mixers" in node and "num_layers" in node:
        return list(pattern)
    return []


def mean_loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return the mean nats of the next token or, for a model that sees the whole sequence, of the reversed tokens."""
    if sees_future(model):
        inputs_BT, targets_BT = ids_BT, ids_BT.flip(1)
    else:
        inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    logits_BTV, _ = model(inputs_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss for every trainable parameter, zero for those that it does not depend on."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), materialize_grads=True), strict=True))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _is_without_head(node: Node) -> bool:
    """Return whether the hidden state is the logits, so that the number of ids sets its width."""
    return node.get("head") == "none"


def _with(node: Node, sizes: Node) -> Node:
    return {**node, **{key: size for key, size in sizes.items() if key in node}}


def _mixers_of_layers(node: Node) -> list[str]:
    """Return the name of each layer's mixer; empty for a model without a pattern."""
    pattern = pattern_of(node)
    if not pattern:
        return []
    return [pattern[index % len(pattern)] for index in range(node["num_layers"])]


def _with_mixers(node: Node, names: Sequence[str]) -> Node:
    """Return settings with at least one layer for each of these mixers.

    If a mixer is missing, the pattern becomes the distinct mixers in order, with at least one layer for each.
    """
    distinct = list(dict.fromkeys(names))
    if set(distinct) <= set(_mixers_of_layers(node)):
        return node
    return {**node, "pattern": distinct, "num_layers": max(node["num_layers"], len(distinct))}


def _built(node: Node, vocab_size: int, pad_id: int | None) -> nn.Module:
    """Build a model without dropout, whose noise would hide every difference."""
    model: nn.Module = build(_with(node, {"dropout": 0.0}), vocab_size=vocab_size, pad_id=pad_id)
    return model
