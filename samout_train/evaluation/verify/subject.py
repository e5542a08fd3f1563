"""The models that are verified, at their sizes, and the tokens and losses that they are verified with."""

# B batch, T time, V vocabulary

from collections.abc import Callable, Collection, Mapping
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
NUM_TOKENS = 1040  # past the border of a tile of 1,024
LEAST_TOKENS = 4
QUIET_IDS = 4


@dataclass(frozen=True)
class ModelUnderTest:
    """A model to verify.

    Args:
        build: Builds it, with new weights or with trained ones.
        vocab_size: Number of ids V.
        pad_id: Id of the padding; None where there is none.
        most_tokens: The most that it takes in one sequence; None for any number.
        trained: Whether the weights are trained ones, and to be verified as they are.

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
            raise ValueError(f"max_seq_len ({self.most_tokens}) is too short to verify: {LEAST_TOKENS} or more")

    def model(self, device: torch.device, *, as_trained: bool = False, seed: int = 0) -> nn.Module:
        """Return a model without dropout; new ones have embeddings of standard deviation 1.

        Where embeddings are drawn small, what the first layer mixes is so small that no bound would notice it.

        Args:
            device: Where to put it.
            as_trained: Whether to leave the embeddings as training starts from them.
            seed: Decides new weights.
        """
        torch.manual_seed(seed)
        model = self.build().to(device)
        for module in model.modules():
            if isinstance(module, _DropoutNd):
                module.p = 0.0
            if isinstance(module, nn.Embedding) and not (self.trained or as_trained):
                module.reset_parameters()  # torch's: N(0, 1), the padding's row zero
        return model

    def tokens(self, most: int = NUM_TOKENS) -> int:
        """Return as many tokens as a check wants, or as the model takes."""
        return min(most, self.most_tokens or most)

    def ids(self, rows: int, time: int, device: torch.device) -> Tensor:
        """Return (B, T) random ids that are no padding."""
        usable_V = self._usable()
        return usable_V[torch.randint(len(usable_V), (rows, time), generator=_generator())].to(device)

    def quiet_and_other_ids(self, time: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return two sequences, (T), with no id in common, the first one of few ids.

        A maximum shows a later token only where that token is larger than all before it: among few, others stand out.
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
    """Return a model's settings at the sizes that it is verified at.

    Args:
        node: The `model` of a configuration.
        typed: The keys that a person has set: they stay.
    """
    sizes = dict(SIZES)
    if _is_without_head(node):
        sizes["hidden_size"] = VOCAB_SIZE
    return _with(node, {key: size for key, size in sizes.items() if key not in typed})


def models_under_test(node: Node) -> tuple[ModelUnderTest, ModelUnderTest]:
    """Return what `verify` takes for a model that is not trained: the model, and a tiny one of the same kind.

    Args:
        node: The `model` of a configuration, at the sizes to verify it at.
    """
    # Without a head the logits are a hidden state, within -1 and 1, which learns no batch by heart.
    changes: Node = dict(TINY)
    if _is_without_head(node):
        changes["head"] = "linear"
    tiny = _with(node, changes)
    model = ModelUnderTest(lambda: _built(node, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID, node.get("max_seq_len"))
    return model, ModelUnderTest(lambda: _built(tiny, VOCAB_SIZE, PAD_ID), VOCAB_SIZE, PAD_ID)


def trained_models_under_test(
    node: Node, weights: Mapping[str, Tensor], *, vocab_size: int, pad_id: int | None
) -> tuple[ModelUnderTest, ModelUnderTest]:
    """Return what `verify` takes for a trained model: the model as it is, and a tiny new one of the same kind.

    Args:
        node: The `model` of its configuration.
        weights: Its state dict.
        vocab_size: Number of ids that it was trained on.
        pad_id: Id of the padding; None where there is none.
    """

    def trained() -> nn.Module:
        model = _built(node, vocab_size, pad_id)
        model.load_state_dict(weights)
        return model

    model = ModelUnderTest(trained, vocab_size, pad_id, node.get("max_seq_len"), trained=True)
    return model, models_under_test(node)[1]


def mean_loss(model: nn.Module, ids_BT: Tensor) -> Tensor:
    """Return the mean nats: of the next token, or where a model sees the whole sequence, of the tokens turned round."""
    if sees_future(model):
        inputs_BT, targets_BT = ids_BT, ids_BT.flip(1)
    else:
        inputs_BT, targets_BT = ids_BT[:, :-1], ids_BT[:, 1:]
    logits_BTV, _ = model(inputs_BT)
    return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Return the gradient of a loss for every parameter that is trained, zero where it does not depend on it."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values()), materialize_grads=True), strict=True))


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def _is_without_head(node: Node) -> bool:
    """Return whether the hidden state is the logits, so that its width is for the number of ids to say."""
    return node.get("head") == "none"


def _with(node: Node, sizes: Node) -> Node:
    return {**node, **{key: size for key, size in sizes.items() if key in node}}


def _built(node: Node, vocab_size: int, pad_id: int | None) -> nn.Module:
    """Build without dropout, which would be all that a comparison measures."""
    model: nn.Module = build(_with(node, {"dropout": 0.0}), vocab_size=vocab_size, pad_id=pad_id)
    return model
