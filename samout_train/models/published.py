"""Load and write checkpoints of the published SamOut scripts, saved by `torch.save(net.state_dict(), ...)`.

The tensors determine the variant and all sizes except V1's number of heads.
"""

# D width, V vocabulary

import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from samout_train.models.published_files import LAYERS, published_tensors, read_published
from samout_train.models.samout import MaxState, MaxStateSuper, SamOut

PAD_ID = 3
V1_PROJECTIONS = ("self_attention.head0.weight", "self_attention.head1.weight", "self_attention.head2.weight")
V8_PROJECTION = "self_attention.combined.weight"
NAMES = {
    "em.weight": "embedding.weight",
    "head.weight": "head.weight",
    "alpha": "alpha",
    "layer_norm": "norm",
    "ffn.ffn1": "feed_forward.up",
    "ffn.gate": "feed_forward.gate",
    "ffn.ffn2": "feed_forward.down",
    V8_PROJECTION: "mixer.projection.weight",
}
OUTSIDE = ("em.weight", "head.weight")  # parameters outside the layers
# Tensors that the public repository's V1 has and V1 here lacks.
POSITIONED = re.compile(r"pos\.weight|down\.\d+\.weight", re.ASCII)
OTHER_V1 = (
    "these are weights of the V1 of the public repository, which is another program than V1 here: it concatenates a "
    "learned position (pos.weight) to the input of every layer and projects both to the width (down.N.weight), its "
    "feed-forward is 2 D wide instead of D / 2, and its head is not tied to the embedding. Run it with the program "
    "that wrote it, or train model=v1 or model=v8 here"
)
NO_PARAMETER = (
    "is no parameter of the published SamOut V1 or V8. Leave it out of the state_dict if it is only a buffer, such as "
    "positions; otherwise the file belongs to another model"
)
COPY_WHOLE = "Save or copy the whole state_dict again"
NAMED = 3
LONGEST_NAME = 100


class OtherV1Error(ValueError):
    """The weights are of the V1 of the public repository, which this program does not compute."""

    def __init__(self) -> None:
        super().__init__(OTHER_V1)


class _Sizes(NamedTuple):
    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int


def rename_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to the names of SamOut.state_dict(); works for weights and for their gradients.

    Args:
        tensors: By published name, such as `decoder_layers.0.self_attention.combined.weight`.

    Returns:
        By the names of SamOut.state_dict(); V1's three projections become one (3D, D) matrix.

    Raises:
        OtherV1Error: if they are weights of the V1 of the public repository.
        ValueError: for a name that no published program writes, or a V1 layer without all three projections.
    """
    _require_supported_v1(tensors)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        prefix, inner = "", name
        layer = re.fullmatch(r"decoder_layers\.(\d+)\.(.+)", name)
        if layer:
            prefix, inner = f"layers.{layer[1]}.", layer[2]
        if inner in V1_PROJECTIONS:
            start, parts = name.removesuffix(inner), []
            for projection in V1_PROJECTIONS:
                if start + projection in tensors:
                    parts.append(tensors[start + projection])
            if not layer or len(parts) < len(V1_PROJECTIONS):
                raise ValueError(f"{name} is not complete: a V1 layer has head0, head1 and head2")
            renamed[f"{prefix}mixer.projection.weight"] = torch.cat(parts)
            continue
        stem, _, ending = inner.rpartition(".")
        if inner in NAMES:
            renamed[prefix + NAMES[inner]] = tensor
        elif stem in NAMES and ending in ("weight", "bias"):
            renamed[f"{prefix}{NAMES[stem]}.{ending}"] = tensor
        else:
            raise ValueError(f"{name} {NO_PARAMETER}")
    return renamed


def published_state(model: nn.Module) -> dict[str, Tensor]:
    """Return a model's weights under the names of the published programs, the inverse of `rename_published`.

    Args:
        model: A SamOut that is V1 or V8.

    Returns:
        By published name, in the order of the model's state_dict; V1's projection is three (D, D) matrices.

    Raises:
        ValueError: if the model is neither.
    """
    is_v1 = _is_published(model, MaxState, tied_head=True)
    if not is_v1 and not _is_published(model, MaxStateSuper, tied_head=False):
        raise ValueError(
            "only SamOut V1 (MaxState, tied head) and V8 (MaxStateSuper, own head) were published, and this is "
            f"{_described(model)}: set format=safetensors"
        )
    published_name = {name: published for published, name in NAMES.items()}
    published: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, inner = "", name
        layer = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
        if layer:
            prefix, inner = f"decoder_layers.{layer[1]}.", layer[2]
        stem, _, ending = inner.rpartition(".")
        if inner == "mixer.projection.weight" and is_v1:
            for projection, piece in zip(V1_PROJECTIONS, tensor.chunk(3), strict=True):
                published[prefix + projection] = piece
        elif inner in published_name:
            published[prefix + published_name[inner]] = tensor
        else:
            published[f"{prefix}{published_name[stem]}.{ending}"] = tensor
    return published


def load_published(path_or_state_dict: str | Path | Mapping[str, Tensor], *, num_heads: int | None = None) -> SamOut:
    """Build a model with the same logits from a published checkpoint.

    Args:
        path_or_state_dict: A file of torch.save or safetensors, read without running code, or its content. The weights
            may lie below a key or belong to a wrapped, compiled or pickled model, in any floating-point type.
        num_heads: Heads H. Required for V1, whose maximum is scaled by 1 / sqrt(D / H); ignored for V8.

    Returns:
        The model, in evaluation mode. Its dropout is that of the published program: V1 0, V8 0.01.

    Raises:
        ValueError: if the file is not such a checkpoint, or num_heads is missing for V1.
    """
    if isinstance(path_or_state_dict, Mapping):
        tensors = published_tensors(path_or_state_dict)
    else:
        tensors = _read(Path(path_or_state_dict))
    if num_heads is not None and (isinstance(num_heads, bool) or not isinstance(num_heads, int) or num_heads < 1):
        raise ValueError(f"num_heads ({num_heads}) must be a whole number of 1 or more")
    is_v8 = is_published_v8(tensors)
    if num_heads is None and not is_v8:
        raise ValueError("num_heads is missing: V1 scales by it, and the file lacks it (published: 16 at D 256)")
    sizes = _sizes(tensors)
    with torch.device("meta"):
        wanted = published_state(_model(sizes, 1, is_v8=is_v8))
    _require_names_and_shapes(tensors, wanted, "V8" if is_v8 else "V1")
    model = _model(sizes, num_heads or 1, is_v8=is_v8)
    model.load_state_dict(rename_published(tensors))
    for name, tensor in published_state(model).items():
        if not tensor.isfinite().all():
            raise ValueError(f"{name} holds NaN or infinite values. Take a file from before they appeared")
    return model.eval()


def is_published_v8(tensors: Mapping[str, Tensor]) -> bool:
    """Return whether tensors belong to V8 rather than V1, by the published names of their projections.

    Raises:
        OtherV1Error: if they are weights of the V1 of the public repository.
        ValueError: if there is no projection, or a tensor that neither variant has.
    """
    _require_supported_v1(tensors)
    _require_known_names(tensors)
    if any(name.endswith(V8_PROJECTION) for name in tensors):
        return True
    if any(name.endswith(V1_PROJECTIONS) for name in tensors):
        return False
    raise ValueError(
        "decoder_layers.0.self_attention.combined.weight (of V8) and decoder_layers.0.self_attention.head0.weight (of "
        "V1) are missing: a published SamOut checkpoint has em.weight and one of them"
    )


def _require_supported_v1(tensors: Mapping[str, Tensor]) -> None:
    if any(map(POSITIONED.fullmatch, tensors)) and any(name.endswith(V1_PROJECTIONS) for name in tensors):
        raise OtherV1Error


def _require_known_names(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a name that no published program writes or a tensor that cannot be a weight."""
    for name, tensor in tensors.items():
        inner = name
        layer = re.fullmatch(r"decoder_layers\.(0|[1-9]\d{0,8})\.(.+)", name, re.ASCII)
        if layer:
            inner = layer[2]
        stem, _, ending = inner.rpartition(".")
        is_stem = stem in NAMES and ending in ("weight", "bias")
        if not (inner in NAMES or is_stem or inner in V1_PROJECTIONS) or bool(layer) is (inner in OUTSIDE):
            raise ValueError(f"{_shown(name)} {NO_PARAMETER}")
        if tensor.is_meta:
            raise ValueError(f"{name} has no values (it is on the device meta). Save a model whose weights were loaded")
        if not tensor.is_floating_point() or tensor.layout != torch.strided:
            kind: object = tensor.dtype
            if tensor.layout != torch.strided:
                kind = tensor.layout
            raise ValueError(f"{name} is {kind}: save weights as float32, float16, bfloat16 or float64")


def _sizes(tensors: Mapping[str, Tensor]) -> _Sizes:
    """Return the arguments of SamOut that follow from the shapes of two tensors and the numbers of the layers."""
    shapes = {}
    for name, words in (("em.weight", "(ids, width)"), ("decoder_layers.0.ffn.ffn1.weight", "(ffn_size, width)")):
        if name not in tensors:
            raise ValueError(_missing([name]))
        shapes[name] = tuple(tensors[name].shape)
        if len(shapes[name]) != 2 or 0 in shapes[name]:
            raise ValueError(f"{name} has shape {shapes[name]}, must be {words}")
    (vocab_size, hidden_size), (ffn_size, _) = shapes.values()
    if vocab_size <= PAD_ID:
        raise ValueError(f"em.weight has {vocab_size} ids, must have more than {PAD_ID}, the id of padding")
    numbers = set()
    for name in tensors:
        if name.startswith(LAYERS):
            numbers.add(int(name.split(".")[1]))
    for number in range(len(numbers)):
        if number not in numbers:
            raise ValueError(f"{LAYERS}{number} is missing, {LAYERS}{max(numbers)} is there. {COPY_WHOLE}")
    return _Sizes(vocab_size, hidden_size, ffn_size, len(numbers))


def _require_names_and_shapes(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], variant: str) -> None:
    """Raise ValueError unless the names and shapes are those of `wanted`."""
    if absent := [name for name in wanted if name not in tensors]:
        raise ValueError(f"not a whole SamOut {variant} checkpoint: {_missing(absent)}")
    if extra := [name for name in tensors if name not in wanted]:
        raise ValueError(f"{extra[0]} is no parameter of SamOut {variant}. Leave it out of the state_dict")
    for name, tensor in wanted.items():
        if tensors[name].shape != tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensors[name].shape)}, must be {tuple(tensor.shape)}")


def _shown(name: str) -> str:
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}..."


def _missing(names: list[str]) -> str:
    if len(names) == 1:
        return f"{names[0]} is missing. {COPY_WHOLE}"
    listed = ", ".join(names[:NAMED])
    if len(names) > NAMED:
        listed += f" and {len(names) - NAMED} more"
    return f"{listed} are missing. {COPY_WHOLE}"


def _model(sizes: _Sizes, num_heads: int, *, is_v8: bool) -> SamOut:
    mixer: type[nn.Module] = MaxState
    dropout = 0.0
    if is_v8:
        mixer, dropout = MaxStateSuper, 0.01
    return SamOut(
        pad_id=PAD_ID,
        num_heads=num_heads,
        ffn_share=1.0,
        dropout=dropout,
        tied_head=not is_v8,
        init="published",
        mixer=mixer,
        vocab_size=sizes.vocab_size,
        hidden_size=sizes.hidden_size,
        ffn_size=sizes.ffn_size,
        num_layers=sizes.num_layers,
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return read_published(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be used as a checkpoint: {error}") from error


def _is_published(model: nn.Module, mixer: type[nn.Module], tied_head: bool) -> bool:
    """Return whether a model is this variant, by exact type: a derived class may compute something else."""
    if type(model) is not SamOut or (model.head is None) is not tied_head:
        return False
    return all(type(layer.mixer) is mixer and layer.is_published for layer in model.layers)


def _described(model: nn.Module) -> str:
    if not isinstance(model, SamOut):
        return f"a {type(model).__name__}"
    mixers = sorted({type(layer.mixer).__name__ for layer in model.layers})
    description = f"a {type(model).__name__} of {', '.join(mixers)}, "
    if model.head is None:
        description += "tied head"
    else:
        description += "own head"
    if not all(layer.is_published for layer in model.layers):
        description += ", with other layers around them"
    return description
