"""Build one decoder for all mixers: pre-norm residual layers over any mixer of the Mixer protocol.

    x = x + mixer(norm(x)); x = x + feed_forward(norm(x));   logits = head(norm(x))

Models differ only in their mixers: embedding, norms, feed-forward and head are the same.

    relu_gated: down(up(x) * relu(gate(x))), with biases, as in SamOut
    swiglu:     down(up(x) * silu(gate(x))), without biases
    gelu:       down(gelu(up(x))), with biases

Source: pre-norm: Xiong et al., On Layer Normalization in the Transformer Architecture (arXiv 2002.04745); RMSNorm:
Zhang and Sennrich (arXiv 1910.07467); SwiGLU: Shazeer, GLU Variants Improve Transformer (arXiv 2002.05202), with two
thirds of the inner width of two matrices, here 8 / 3 D rounded up to a multiple of 8; the initial weights `gpt2`:
Radford et al., Language Models are Unsupervised Multitask Learners (2019), section 2.3, with the deviation of its
program.
"""

# B batch, T time, D width, F inner width, V vocabulary

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train.config import (
    Layers,
    Probability,
    Problem,
    Size,
    SizeOrNone,
    build,
    locate,
    not_divisible,
    shown,
    validated,
)
from samout_train.models.heads import Gate, OutputGate, OutputNorm, has_output_gate, output_gate_of
from samout_train.models.interface import Mixer, matrix_flops, part_of
from samout_train.models.layers import STD, CausalConvolution, FeedForward, Linear, RMSNorm, token_embedding
from samout_train.models.regularisation import (
    Regularisation,
    StochasticDepth,
    connect_by_chance,
    joined,
    rate_of_site,
)
from samout_train.models.samout import GatedFeedForward
from samout_train.models.state import LayerState, as_layer_state
from samout_train.ops.elementwise import Stream, add_norm
from samout_train.ops.linear import Stack, found_copy, stacked_linear
from samout_train.ops.samout_layer import gated_halves

FeedForwardName = Literal["relu_gated", "swiglu", "gelu"]
NormName = Literal["layer", "rms"]
InitName = Literal["published", "gpt2"]
RESIDUAL_WRITERS = ("out", "down")  # names of the matrices whose product is added to the residual stream
INNER_SHARES: dict[str, float] = {"relu_gated": 8 / 3, "swiglu": 8 / 3, "gelu": 4}


class SwiGLU(nn.Module):
    """Compute down(dropout(up(x) * silu(gate(x)))), without biases.

    Args:
        hidden_size: Width D.
        ffn_size: Inner width F.
        dropout: Dropout before `down`.
    """

    def __init__(self, *, hidden_size: int, ffn_size: int, dropout: float) -> None:
        super().__init__()
        self.up = Linear(hidden_size, ffn_size, bias=False)
        self.gate = Linear(hidden_size, ffn_size, bias=False)
        self.down = Linear(ffn_size, hidden_size, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D), each position separately."""
        if (copy := found_copy(x_BTD, self.up.weight, blocks=2)) is not None:
            inner_BTF = gated_halves(stacked_linear(x_BTD, copy), silu=True)
        else:
            inner_BTF = self.up(x_BTD) * F.silu(self.gate(x_BTD))
        return cast(Tensor, self.down(self.dropout(inner_BTF)))

    def weight_stack(self) -> Stack:
        """Return `up` and `gate` as blocks of one product."""
        return Stack([self.up.weight, self.gate.weight], [[(0, 0)], [(1, 0)]])


def feed_forward_of(name: FeedForwardName, *, hidden_size: int, ffn_size: int | None, dropout: float) -> nn.Module:
    """Return a feed-forward; without an inner width it has about as many parameters as two matrices of 4 D."""
    if ffn_size is None:
        ffn_size = -(-int(INNER_SHARES[name] * hidden_size) // 8) * 8
    if name == "relu_gated":
        return GatedFeedForward(hidden_size=hidden_size, ffn_size=ffn_size, dropout=dropout)
    if name == "swiglu":
        return SwiGLU(hidden_size=hidden_size, ffn_size=ffn_size, dropout=dropout)
    return FeedForward(hidden_size=hidden_size, ffn_size=ffn_size, dropout=dropout, activation="gelu")


def norm_of(name: NormName, hidden_size: int) -> nn.Module:
    """Return a norm over D with weights; LayerNorm also has biases."""
    if name == "rms":
        return RMSNorm(hidden_size, eps=1e-5)
    return nn.LayerNorm(hidden_size)


class PreNormLayer(nn.Module):
    """Add a mixer and a feed-forward to the residual stream, each reading a norm of it.

    Args:
        mixer: The token mixer.
        hidden_size: Width D.
        norm: `layer` or `rms`.
        feed_forward: Module after the mixer.
        regularisation: The rates of this layer.
        convolution_size: Tokens in the kernel of a convolution before the mixer, if that lacks its own; 0 for no
            convolution.
        output_gate: Gate of the mixer's output; None for no gate.
    """

    def __init__(
        self,
        *,
        mixer: nn.Module,
        hidden_size: int,
        norm: NormName,
        feed_forward: nn.Module,
        regularisation: Regularisation,
        convolution_size: int,
        output_gate: OutputGate | None,
    ) -> None:
        super().__init__()
        self.mixer_norm = norm_of(norm, hidden_size)
        self.convolution: CausalConvolution | None = None
        if convolution_size and not has_convolution(mixer):
            self.convolution = CausalConvolution(hidden_size=hidden_size, size=convolution_size, feeds_products=True)
        self.mixer = mixer
        connect_by_chance(mixer, regularisation.drop_connect)
        self.output_gate = output_gate
        self.feed_forward_norm = norm_of(norm, hidden_size)
        self.feed_forward = feed_forward
        self.mixer_dropout = nn.Dropout(regularisation.mixer_dropout)
        self.ffn_dropout = nn.Dropout(regularisation.ffn_dropout)
        self.stochastic_depth = StochasticDepth(regularisation.stochastic_depth)

    def forward(self, stream: Stream, state: Any) -> tuple[Stream, Any]:
        """Return the layer's output (B, T, D), as `residual` does, and its next state: the mixer's, or a LayerState."""
        x_BTD, y_BTD = add_norm(stream, self.mixer_norm)
        read_BTD = y_BTD
        tokens_BKD = None
        if self.convolution is not None:
            state, tokens_BKD = as_layer_state(state)
            y_BTD, tokens_BKD = self.convolution(y_BTD, tokens_BKD)
        y_BTD, state = self.mixer(y_BTD, state)
        if self.convolution is not None:
            state = LayerState(state, tokens_BKD)
        if self.output_gate is not None:
            y_BTD = self.output_gate(y_BTD, read_BTD)
        x_BTD, y_BTD = add_norm(joined(x_BTD, y_BTD, self.mixer_dropout, self.stochastic_depth), self.feed_forward_norm)
        return joined(x_BTD, self.feed_forward(y_BTD), self.ffn_dropout, self.stochastic_depth), state

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token in a row of `length`."""
        flops = mixer_flops(self.mixer, length) + matrix_flops(self.feed_forward)
        if self.output_gate is not None:
            flops += matrix_flops(self.output_gate)
        return flops

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state after `length` tokens."""
        of_mixer = cast(Mixer, self.mixer).state_bytes(length)
        if self.convolution is None:
            return of_mixer
        return of_mixer + self.convolution.state_bytes()


def _builders(
    num_layers: int,
    mixer: Callable[..., nn.Module] | None,
    mixers: Mapping[str, Callable[..., nn.Module]] | None,
    pattern: Sequence[str] | None,
) -> list[Callable[..., nn.Module]]:
    """Return the builder of each layer's mixer."""
    if pattern is not None and mixers is not None:
        return [mixers[pattern[index % len(pattern)]] for index in range(num_layers)]
    return [cast(Callable[..., nn.Module], mixer)] * num_layers


def _told_its_depth(mixer: nn.Module, index: int, num_layers: int) -> nn.Module:
    if (at_depth := getattr(mixer, "at_depth", None)) is not None:
        at_depth(index, num_layers)
    return mixer


def has_convolution(mixer: nn.Module) -> bool:
    """Return whether a mixer has a convolution of its own."""
    return any(isinstance(part, CausalConvolution) for part in mixer.modules())


# Model settings that apply only to mixers without a part of their own: the part's name, and whether a mixer has it.
FOR_MIXERS_WITHOUT: dict[str, tuple[str, Callable[[nn.Module], bool]]] = {
    "convolution_size": ("a convolution", has_convolution),
    "output_norm": ("an output gate", has_output_gate),
    "output_gate": ("an output gate", has_output_gate),
}


def _whose(nodes: Mapping[str, Any]) -> str:
    if len(nodes) > 1:
        return "each mixer of the pattern has"
    return "the mixer has"


def _own_key(key: str, nodes: Mapping[str, Any]) -> str:
    """Return the fix for a setting that the mixers ignore: their own keys for it, or to leave it out.

    Args:
        key: The setting, one of FOR_MIXERS_WITHOUT.
        nodes: Settings of the mixers, by the key above them.
    """
    own = []
    for above, node in nodes.items():
        known = inspect.signature(locate(node["_target_"])).parameters
        if key in known:
            own.append(f"{above}.{key}")
        elif key == "output_norm" and "output_gate" in known:  # without its gate, a mixer takes the model's
            own.append(f"{above}.output_gate=none")
    if not own:
        return "leave it out"
    return f"set {', '.join(own)}"


def mixer_flops(mixer: nn.Module, length: int) -> int:
    """Return the operations of a mixer's products: as reported, or of its matrices and its recurrence."""
    reported = getattr(mixer, "forward_flops_per_token", None)
    if reported is not None:
        of_mixer: int = reported()
        return of_mixer
    over_time = getattr(mixer, "operator_flops", None)
    if over_time is None:
        return matrix_flops(mixer)
    return matrix_flops(mixer) + int(over_time(length))


class PreNormModel(nn.Module):
    """Model language causally, with pre-norm layers over any mixer.

    Args:
        vocab_size: Number of token ids V.
        pad_id: The id whose embedding starts at zero and takes no gradient; None for no padding.
        hidden_size: Width D.
        num_heads: Heads H of the mixer; must divide D.
        num_layers: Layers L.
        ffn_size: Inner width of the feed-forward; None for about as many parameters as two matrices of 4 D.
        dropout: Dropout of the outputs of mixer and feed-forward, unless their own is given.
        mixer: Builds one layer's mixer from `hidden_size` and `num_heads`. If the mixer has a method `at_depth`, it is
            called with the index of the layer, from 0, and the number of layers.
        norm: `layer` (LayerNorm) or `rms` (RMSNorm).
        feed_forward: `relu_gated`, `swiglu` or `gelu`.
        convolution_size: Tokens in the kernel of a convolution before each mixer that lacks its own; 0 for no
            convolution.
        output_norm: Norm of the output of a mixer without its own output gate: RMSNorm of each `head`, or of `all`
            channels; or `none`.
        output_gate: For a mixer without its own output gate: `silu` or `sigmoid` of W_g x multiplies its output, with x
            the mixer's input before a convolution; or `none`.
        mixers: Builders of mixers by name, each like `mixer`.
        pattern: Names of `mixers` for the first layer, the second one and so on, repeated over the layers; None for
            `mixer` in every layer.
        embedding_dropout: Dropout of the embedding; None for none.
        mixer_dropout: Dropout of each mixer's output; None for `dropout`.
        ffn_inner_dropout: Dropout inside each feed-forward; None for none.
        ffn_dropout: Dropout of each feed-forward's output; None for `dropout`.
        drop_connect: Share of the weights of each mixer's projections that are dropped in a pass.
        stochastic_depth: Share of the rows whose residual branches are dropped in the last layer.
        init: `published` draws the matrices of a mixer as its own source does and the others as torch does. `gpt2`
            draws all matrices from N(0, 0.02^2), divides those that write to the residual stream by sqrt(2 L), and
            sets the biases of the feed-forward to 0. Other initial values of a mixer do not change.

    Raises:
        ValueError: if num_heads does not divide hidden_size, or the mixers of the layers are not given.
    """

    @staticmethod
    def problems(settings: Mapping[str, Any], name: str) -> list[Problem | str]:
        """Return the problems between settings that are each valid alone; `name` is the key above them."""
        width, heads = settings["hidden_size"], settings["num_heads"]
        found: list[Problem | str] = []
        if problem := not_divisible(f"{name}.hidden_size", width, f"{name}.num_heads", heads):
            found.append(problem)
        pattern, known = settings.get("pattern"), settings.get("mixers") or {}
        if pattern is None and settings.get("mixer") is None:
            found.append(Problem(f"{name}.mixer", text="is missing", fix=f"set {name}.pattern=[...] or choose a mixer"))
        if pattern is not None and not pattern:
            found.append(Problem(f"{name}.pattern", "[]", text="names no mixer", fix="name one or more"))
        if pattern and not known:
            value, text = f"[{', '.join(pattern)}]", "this model has no mixers to name"
            return [*found, Problem(f"{name}.pattern", value, text=text, fix=f"choose {name}=hybrid")]
        for unknown in sorted(set(pattern or ()) - set(known)):
            fix = f"name some of {', '.join(sorted(known))}"
            found.append(Problem(f"{name}.pattern", f"[{unknown}]", text="no such mixer", fix=fix))
        return found

    @staticmethod
    def without_effect(settings: Mapping[str, Any], name: str) -> list[Problem]:
        """Return a problem for each setting that has no effect, because every mixer has that part of its own.

        Args:
            settings: As in YAML, and valid.
            name: The key above them.
        """
        given = {key for key in FOR_MIXERS_WITHOUT if settings.get(key) not in (None, 0, "none")}
        if not given:
            return []
        nodes: dict[str, Any] = {f"{name}.mixer": settings.get("mixer")}
        if settings.get("pattern") is not None:
            nodes = {f"{name}.mixers.{one}": settings["mixers"][one] for one in dict.fromkeys(settings["pattern"])}
        sizes = {"hidden_size": settings["hidden_size"], "num_heads": settings["num_heads"]}
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            mixers = [build(node, **sizes) for node in nodes.values()]
        found = []
        for key, (part, has_own) in FOR_MIXERS_WITHOUT.items():
            if key in given and all(map(has_own, mixers)):
                text = f"changes nothing, as {_whose(nodes)} {part} of its own"
                found.append(Problem(f"{name}.{key}", shown(settings[key]), text=text, fix=_own_key(key, nodes)))
        return found

    @validated
    def __init__(
        self,
        *,
        vocab_size: Annotated[int, Size],
        pad_id: int | None,
        hidden_size: Annotated[int, Size],
        num_heads: Annotated[int, Size],
        num_layers: Annotated[int, Layers],
        ffn_size: Annotated[int, Size] | None,
        dropout: Annotated[float, Probability],
        norm: NormName,
        feed_forward: FeedForwardName,
        mixer: Callable[..., nn.Module] | None = None,
        convolution_size: Annotated[int, SizeOrNone] = 0,
        output_norm: OutputNorm = "none",
        output_gate: Gate = "none",
        mixers: Mapping[str, Callable[..., nn.Module]] | None = None,
        pattern: Sequence[str] | None = None,
        embedding_dropout: Annotated[float, Probability] | None = None,
        mixer_dropout: Annotated[float, Probability] | None = None,
        ffn_inner_dropout: Annotated[float, Probability] | None = None,
        ffn_dropout: Annotated[float, Probability] | None = None,
        drop_connect: Annotated[float, Probability] = 0.0,
        stochastic_depth: Annotated[float, Probability] = 0.0,
        init: InitName = "published",
    ) -> None:
        super().__init__()
        settings = {"hidden_size": hidden_size, "num_heads": num_heads, "mixer": mixer}
        if found := self.problems(settings | {"mixers": mixers, "pattern": pattern}, "model"):
            raise ValueError(str(found[0]))
        self.embedding = token_embedding("learned", vocab_size=vocab_size, size=hidden_size, pad_id=pad_id)
        self.embedding_dropout = nn.Dropout(rate_of_site(embedding_dropout))
        regularisation = Regularisation(
            mixer_dropout=rate_of_site(mixer_dropout, dropout),
            ffn_inner_dropout=rate_of_site(ffn_inner_dropout),
            ffn_dropout=rate_of_site(ffn_dropout, dropout),
            drop_connect=drop_connect,
            stochastic_depth=stochastic_depth,
        )
        self.layers = nn.ModuleList()
        for index, builder in enumerate(_builders(num_layers, mixer, mixers, pattern)):
            rates = regularisation.of_layer(index, num_layers)
            built = _told_its_depth(builder(hidden_size=hidden_size, num_heads=num_heads), index, num_layers)
            layer = PreNormLayer(
                mixer=built,
                hidden_size=hidden_size,
                norm=norm,
                feed_forward=feed_forward_of(
                    feed_forward, hidden_size=hidden_size, ffn_size=ffn_size, dropout=rates.ffn_inner_dropout
                ),
                regularisation=rates,
                convolution_size=convolution_size,
                output_gate=output_gate_of(
                    built, hidden_size=hidden_size, num_heads=num_heads, norm=output_norm, gate=output_gate
                ),
            )
            self.layers.append(layer)
        self.norm = norm_of(norm, hidden_size)
        self.head = Linear(hidden_size, vocab_size, bias=False)
        self._draw(init)

    def _draw(self, init: InitName) -> None:
        if init == "published":
            return
        for name, module in self.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            nn.init.normal_(module.weight, std=STD)
            if name.rpartition(".")[2] in RESIDUAL_WRITERS:
                with torch.no_grad():
                    module.weight.div_(math.sqrt(2 * len(self.layers)))
            if ".feed_forward." in name and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def head_weight(self) -> Tensor:
        """Return the matrix (V, D) that maps the result of `return_hidden` to logits."""
        return self.head.weight

    def forward(
        self, ids_BT: Tensor, state: Sequence[Any] | None = None, *, return_hidden: bool = False
    ) -> tuple[Tensor, list[Any]]:
        """Return the logits for the next token at each position.

        Args:
            ids_BT: Token ids, int64, T at least 1.
            state: The state returned by the previous call; None at the start of a sequence.
            return_hidden: Whether to return the input of the head, (B, T, D), instead of the logits.

        Returns:
            (logits_BTV, state): The logits and each layer's state.

        Raises:
            ValueError: if the state has another number of layers.
        """
        states: Sequence[Any] = [None] * len(self.layers)
        if state is not None:
            states = state
        if len(states) != len(self.layers):
            raise ValueError(
                f"state has {len(states)} layers, the model {len(self.layers)}: give the state it returned"
            )
        stream: Stream = self.embedding_dropout(self.embedding(ids_BT))
        next_state = []
        for layer, before in zip(self.layers, states, strict=True):
            stream, after = layer(stream, before)
            next_state.append(after)
        x_BTD = add_norm(stream, self.norm)[1]
        if not return_hidden:
            x_BTD = self.head(x_BTD)
        return x_BTD, next_state

    def state_by_layer(self, state: Sequence[Any]) -> dict[str, Any]:
        """Return each mixer's memory by layer; it may grow. Convolution states are plain inputs and are left out."""
        named = {}
        for index, part in enumerate(state, start=1):
            memory: Any = part
            while isinstance(memory, LayerState):
                memory = memory.mixer
            named[f"layer_{index}"] = memory
        return named

    def part_of(self, name: str) -> str:
        """Return the part of the model that a parameter belongs to, as reports name it."""
        return part_of(name)

    def forward_flops_per_token(self, length: int) -> int:
        """Return the operations of the matrix products for one token in a row of `length`."""
        layers = sum(layer.forward_flops_per_token(length) for layer in cast(list[PreNormLayer], self.layers))
        return layers + 2 * self.head_weight.numel()

    def state_bytes(self, length: int) -> int:
        """Return the bytes of one sequence's state after `length` tokens."""
        return sum(layer.state_bytes(length) for layer in cast(list[PreNormLayer], self.layers))
