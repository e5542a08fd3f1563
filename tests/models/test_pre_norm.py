"""The decoder of pre-norm layers, and its mixers against their published recurrences, token by token in float64."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from samout_train import build_model
from samout_train.config import CONF, ConfigError, build, compose_config
from samout_train.evaluation.verify import distance
from samout_train.models import map_state, state_bytes
from samout_train.ops import fla
from samout_train.ops.elementwise import turned
from samout_train.training import checked_config
from tests.support.marks import mostly_nightly, spread

WIDTH, HEADS, TIME = 12, 2, 70  # past the border of a chunk of 64
Parameters = dict[str, Tensor]
Loop = Callable[[Parameters, Tensor], Tensor]


def mixer_of(name: str, **settings: Any) -> nn.Module:
    """The mixer of a YAML, in float64, its vectors moved from where they start, so that each of them counts."""
    torch.manual_seed(0)
    node = compose_config([f"model={name}"]).config["model"]["mixer"] | settings
    mixer: nn.Module = build(node, hidden_size=WIDTH, num_heads=HEADS).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return mixer


def heads(x: Tensor) -> Tensor:
    """(B, P) to (B, H, K)."""
    return x.unflatten(-1, (HEADS, -1))


def convolved(p: Parameters, x: Tensor, width: int) -> Tensor:
    """SiLU of a causal convolution of the first channels."""
    if "streams.convolution.weight" not in p:
        return x
    weight = p["streams.convolution.weight"]
    padded = F.pad(x[..., :width].transpose(1, 2), (weight.shape[-1] - 1, 0))
    y = F.conv1d(padded, weight, p.get("streams.convolution.bias"), groups=width).transpose(1, 2)
    return torch.cat([F.silu(y), x[..., width:]], dim=-1)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def joined(p: Parameters, o: list[Tensor], x: Tensor, gate: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    """Output norm, gate and projection of what the heads gave, (B, H, V) a token."""
    y = torch.stack(o, 1)
    if "joined.norm.weight" in p:
        is_of_head = p["joined.norm.weight"].numel() == y.shape[-1]
        y = rms(y, p["joined.norm.weight"]).flatten(2) if is_of_head else rms(y.flatten(2), p["joined.norm.weight"])
    else:
        y = y.flatten(2)
    if "joined.gate.weight" in p:
        y = y * gate(x @ p["joined.gate.weight"].T)
    return y @ p["joined.out.weight"].T


def outer(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :, None] * v[..., None, :]


def read(state: Tensor, q: Tensor) -> Tensor:
    return (state * q[..., None]).sum(-2)


def gla(p: Parameters, x: Tensor) -> Tensor:
    streams = x @ p["streams.projection.weight"].T
    a = torch.sigmoid(x @ p["decay_down.weight"].T @ p["decay_up.weight"].T + p["decay_up.bias"]) ** (1 / 16)
    keys, state, found = a.shape[-1], 0.0, []
    for t in range(x.shape[1]):
        q, k, v = map(heads, streams[:, t].split([keys, keys, WIDTH], -1))
        state = heads(a[:, t])[..., None] * state + outer(k, v)
        found.append(read(state, q) / (keys / HEADS) ** 0.5)
    return joined(p, found, x)


def retnet(p: Parameters, x: Tensor) -> Tensor:
    streams, state, found = x @ p["streams.projection.weight"].T, 0.0, []
    size = WIDTH // HEADS
    decay = torch.tensor([1 - 2.0 ** (-5 - h) for h in range(HEADS)], dtype=x.dtype)[:, None, None]
    for t in range(x.shape[1]):
        q, k, v = map(heads, streams[:, t].split([WIDTH, WIDTH, 2 * WIDTH], -1))
        angle = [t * 10_000.0 ** (-2 * pair / size) for pair in range(size // 2)]
        # A pair as a complex number, turned by its angle.
        turn = torch.polar(torch.ones(size // 2, dtype=x.dtype), torch.tensor(angle, dtype=x.dtype))
        q, k = (turn * torch.complex(*part.chunk(2, -1)) for part in (q, k))
        q, k = (torch.cat([part.real, part.imag], -1) for part in (q, k))
        state = decay * state + outer(k, v)
        found.append(read(state, q) / size**0.5)
    return joined(p, found, x)


def hgrn2(p: Parameters, x: Tensor, bound: float = 0.0) -> Tensor:
    streams, state, found = x @ p["streams.projection.weight"].T, 0.0, []
    for t in range(x.shape[1]):
        q, f, v = map(heads, streams[:, t].chunk(3, -1))
        f = bound + (1 - bound) * f.sigmoid()
        state = f[..., None] * state + outer(1 - f, v)
        found.append(read(state, F.silu(q)))
    return joined(p, found, x)


def mamba2(p: Parameters, x: Tensor, gate: Callable[[Tensor], Tensor] = F.silu) -> Tensor:
    widths = [2 * WIDTH, 128, 128, 2 * WIDTH, HEADS]
    if len(p["streams.projection.weight"]) < sum(widths):  # without the branch z
        widths[3] = 0
    streams = convolved(p, x @ p["streams.projection.weight"].T, sum(widths[:3]))
    state, found = 0.0, []
    for t in range(x.shape[1]):
        u, keys, queries, z, step = streams[:, t].split(widths, -1)
        step = F.softplus(step + p["step_bias_H"])
        a = torch.exp(-p["log_rate_H"].exp() * step)
        state = a[..., None, None] * state + outer(step[..., None] * keys[:, None], heads(u))
        y = read(state, queries[:, None]) + p["skip_H"][:, None] * heads(u)
        found.append(y.flatten(1) * gate(z) if widths[3] else y.flatten(1))
    return rms(torch.stack(found, 1), p["norm.weight"]) @ p["out.weight"].T


def mlstm(p: Parameters, x: Tensor) -> Tensor:
    """Without the stabiliser: gates here are small enough for their exponentials."""
    streams = convolved(p, x @ p["streams.projection.weight"].T, 2 * WIDTH)
    log_i = x @ p["input_gate.weight"].T + p["input_gate.bias"]
    i, m = log_i.exp(), x.new_full((len(x), HEADS), -torch.inf)
    f = torch.sigmoid(x @ p["forget_gate.weight"].T + p["forget_gate.bias"])
    state, total, found = 0.0, 0.0, []
    for t in range(x.shape[1]):
        q, k, v = map(heads, streams[:, t].chunk(3, -1))
        k = k / (WIDTH / HEADS) ** 0.5
        state = f[:, t, :, None, None] * state + i[:, t, :, None, None] * outer(k, v)
        total = f[:, t, :, None] * total + i[:, t, :, None] * k
        m = torch.maximum(f[:, t].log() + m, log_i[:, t]).detach()
        found.append(
            read(state, q) / ((total * q).sum(-1, keepdim=True).abs().clamp(min=1) + 1e-6 * m.exp()[..., None])
        )
    return joined(p, found, x, torch.sigmoid)


def deltanet(p: Parameters, x: Tensor, largest_beta: float = 1.0) -> Tensor:
    streams = convolved(p, x @ p["streams.projection.weight"].T, 3 * WIDTH)
    beta = largest_beta * torch.sigmoid(x @ p["beta.weight"].T)
    state, found = x.new_zeros(len(x), HEADS, WIDTH // HEADS, WIDTH // HEADS), []
    for t in range(x.shape[1]):
        q, k, v = map(heads, streams[:, t].chunk(3, -1))
        q, k = (part / (part.square().sum(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
        if "decay.weight" in p:
            step = F.softplus(x[:, t] @ p["decay.weight"].T + p["decay_bias_H"])
            state = torch.exp(-p["log_rate_H"].exp() * step)[..., None, None] * state
        state = state + beta[:, t, :, None, None] * outer(k, v - read(state, k))
        found.append(read(state, q) / (WIDTH / HEADS) ** 0.5)
    return joined(p, found, x)


def rglru(p: Parameters, x: Tensor) -> Tensor:
    *gates, u = (x @ p["projection.weight"].T).split(WIDTH, -1)
    weight = p["convolution.weight"]
    padded = F.pad(u.transpose(1, 2), (weight.shape[-1] - 1, 0))
    u = F.conv1d(padded, weight, p["convolution.bias"], groups=WIDTH).transpose(1, 2)
    h, found = 0.0, []
    for t in range(x.shape[1]):
        r, i = (
            torch.sigmoid(u[:, t] @ torch.block_diag(*p[f"{name}_gate_HKK"]) + p[f"{name}_bias_D"])
            for name in ("recurrence", "input")
        )
        a = torch.exp(-8 * F.softplus(p["lambda_D"]) * r)
        h = a * h + torch.sqrt(1 - a**2) * i * u[:, t]
        found.append(F.gelu(gates[0][:, t]) * h if gates else h)
    return torch.stack(found, 1) @ p["out.weight"].T


def attention(p: Parameters, x: Tensor, window: int = TIME) -> Tensor:
    streams = (x @ p["projection.weight"].T).chunk(3, -1)
    q, k, v = (heads(stream).transpose(1, 2) for stream in streams)
    position = torch.arange(x.shape[1])
    q, k = (turned(rms(part, p[f"{name}_norm.weight"]), position) for name, part in (("query", q), ("key", k)))
    back = position[:, None] - position
    scores = (q @ k.transpose(2, 3) / (WIDTH / HEADS) ** 0.5).where((back >= 0) & (back < window), -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2) @ p["out.weight"].T


CASES: dict[str, tuple[str, dict[str, Any], Loop]] = {
    "gla": ("gla", {}, gla),
    "retnet": ("retnet", {}, retnet),
    "hgrn2": ("hgrn2", {}, hgrn2),
    "mamba2": ("mamba2", {}, mamba2),
    "mlstm": ("mlstm", {}, mlstm),
    "deltanet": ("deltanet", {}, deltanet),
    "gated_deltanet": ("gated_deltanet", {}, deltanet),
    "negative": ("gated_deltanet", {"negative_eigenvalues": True}, lambda p, x: deltanet(p, x, 2.0)),
    "rglru": ("rglru", {}, rglru),
    "mamba2 with a sigmoid": ("mamba2", {"output_gate": "sigmoid"}, lambda p, x: mamba2(p, x, torch.sigmoid)),
    "mamba2 without a gate": ("mamba2", {"output_gate": "none"}, mamba2),
    "rglru without a gate": ("rglru", {"output_gate": "none"}, rglru),
    "attention": ("transformer_modern", {}, attention),
    "window": ("transformer_modern", {"window": 9}, lambda p, x: attention(p, x, 9)),
}


def some_input(time: int = TIME) -> Tensor:
    return torch.randn(2, time, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_a_mixer_is_its_recurrence_one_token_after_the_other(case: str) -> None:
    name, settings, loop = CASES[case]
    mixer, x = mixer_of(name, **settings), some_input().requires_grad_()
    parameters = dict(mixer.named_parameters())
    got, wanted = mixer(x, None)[0], loop(parameters, x)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-10)
    inputs = [x, *parameters.values()]
    upstream = torch.randn(got.shape, generator=torch.Generator().manual_seed(2), dtype=got.dtype)
    found = zip(torch.autograd.grad(got, inputs, upstream), torch.autograd.grad(wanted, inputs, upstream), strict=True)
    for place, (gradient, right) in zip(["x", *parameters], found, strict=True):
        assert distance(gradient, right) < 1e-8, place


@pytest.mark.parametrize("case", CASES)
def test_a_mixer_in_pieces_is_the_whole(case: str) -> None:
    name, settings, _ = CASES[case]
    mixer, x = mixer_of(name, **settings), some_input()
    with torch.no_grad():
        whole, state, found = mixer(x, None)[0], None, []
        for piece in x.split([1, 40, 1, 1, 27], dim=1):
            y, state = mixer(piece, state)
            found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-9, atol=1e-10)
    sizes = []
    map_state(lambda part: sizes.append(part[0].numel()) or part, state)  # type: ignore[func-returns-value]
    assert 4 * sum(sizes) == mixer.state_bytes(TIME)  # type: ignore[operator]


@pytest.mark.parametrize("name", ["mamba2", "rglru"])
def test_a_gate_is_left_out_with_its_branch(name: str) -> None:
    node = compose_config([f"model={name}"]).config["model"]["mixer"]
    whole, without = mixer_of(name), mixer_of(name, output_gate="none")
    branch = 2 * WIDTH**2 if name == "mamba2" else WIDTH**2
    sizes = [sum(parameter.numel() for parameter in mixer.parameters()) for mixer in (whole, without)]
    assert sizes[0] - sizes[1] == branch
    assert [key for key, _ in whole.named_parameters()] == [key for key, _ in without.named_parameters()]
    earlier = {key: value for key, value in node.items() if key != "output_gate"}  # as saved before there was the key
    for settings in (node, earlier):
        mixer = build(settings, hidden_size=WIDTH, num_heads=HEADS)
        assert mixer.has_output_gate and sum(part.numel() for part in mixer.parameters()) == sizes[0]


def test_the_lower_bound_of_hgrn2_rises_with_depth() -> None:
    mixer, x = mixer_of("hgrn2"), some_input(9)
    mixer.at_depth(3, 4)  # type: ignore[operator]
    torch.testing.assert_close(mixer(x, None)[0], hgrn2(dict(mixer.named_parameters()), x, 0.75), rtol=1e-9, atol=1e-10)
    model = build_model("hgrn2", vocab_size=9, hidden_size=12, num_heads=2, num_layers=4)
    assert [layer.mixer.lower_bound for layer in model.layers] == [0.0, 0.25, 0.5, 0.75]


def test_large_input_gates_of_an_mlstm_overflow_nothing() -> None:
    mixer, x = mixer_of("mlstm"), some_input(80)
    with torch.no_grad():
        mixer.get_parameter("input_gate.weight").mul_(300)  # gates of hundreds: exp of them is no float32
        exact, _ = mixer(x, None)
        single, _ = mixer.float()(x.float(), None)
    assert single.isfinite().all() and distance(single.double(), exact) < 1e-4


def test_an_mlstm_that_reads_nothing_divides_by_more_than_nothing() -> None:
    mixer = mixer_of("mlstm").float()
    with torch.no_grad():
        mixer.get_parameter("input_gate.bias").fill_(120)  # exp(-120) is 0 in float32
    x = torch.zeros(1, 9, WIDTH, requires_grad=True)
    y, _ = mixer(x, None)
    y.sum().backward()
    assert y.isfinite().all() and x.grad is not None and x.grad.isfinite().all()


def test_hgrn2_with_a_convolution_can_forget_everything() -> None:
    mixer = mixer_of("hgrn2", convolution_size=4)
    with torch.no_grad():
        mixer.get_parameter("streams.projection.weight").mul_(30)
    streams, _ = mixer.get_submodule("streams")(some_input(), None)
    forget = streams[1].detach().sigmoid()
    assert float(forget.min()) < 0.05 and float(forget.max()) > 0.95


@pytest.mark.parametrize("name", ["gla", "retnet", "hgrn2", "mamba2", "deltanet", "gated_deltanet"])
def test_values_reach_the_recurrence_in_the_precision_of_the_products(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(fla, "takes", lambda k, v: seen.append(v.dtype))  # None: it takes nothing
    with torch.autocast("cpu", torch.bfloat16):
        mixer_of(name).float()(some_input(9).float(), None)
    assert seen == [torch.bfloat16]


def test_decays_of_gated_deltanet_and_mamba2_start_as_published() -> None:
    for name, low, high in (("gated_deltanet", 0.0, 16.0), ("mamba2", 1.0, 16.0)):
        torch.manual_seed(0)
        node = compose_config([f"model={name}"]).config["model"]["mixer"]
        mixer = build(node, hidden_size=600, num_heads=600)
        rate = mixer.log_rate_H.detach().exp()
        assert low <= float(rate.min()) < low + 1 and high - 1 < float(rate.max()) <= high
        bias = mixer.decay_bias_H if name == "gated_deltanet" else mixer.step_bias_H
        step = F.softplus(bias.detach()).log()
        assert float(step.mean()) == pytest.approx(-4.6, abs=0.15)  # the middle of log 0.001 and log 0.1
        assert float(step.min()) > -6.91 and float(step.max()) < -2.3


def test_decays_of_rglru_start_between_their_bounds() -> None:
    torch.manual_seed(0)
    node = compose_config(["model=rglru"]).config["model"]["mixer"]
    mixer = build(node, hidden_size=600, num_heads=4)
    decay = torch.exp(-8 * F.softplus(mixer.lambda_D.detach()))
    assert 0.9 <= float(decay.min()) < 0.902 and 0.998 < float(decay.max()) <= 0.9991


def test_matrices_of_mlstm_and_rglru_start_as_published() -> None:
    torch.manual_seed(0)
    width, layers = 200, 3
    mlstm, rglru = (
        build_model(name, vocab_size=9, hidden_size=width, num_heads=2, num_layers=layers).layers[2].mixer
        for name in ("mlstm", "rglru")
    )
    expected = {  # the programs: small and Wang initialisation; by variances of 1, 2 / L and, of the convolution, 0.01
        mlstm.streams.projection.weight: math.sqrt(2 / (5 * width)),
        mlstm.joined.gate.weight: math.sqrt(2 / (5 * width)),
        mlstm.joined.out.weight: 2 / (layers * math.sqrt(width)),
        rglru.projection.weight: math.sqrt(1 / width),
        rglru.out.weight: math.sqrt(2 / (layers * width)),
        rglru.convolution.weight: math.sqrt(0.01 / 4),
    }
    for weight, std in expected.items():
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.05)
        assert float(weight.detach().abs().max()) > 2.4 * std  # no uniform distribution: that ends at 1.73 std
    assert not rglru.convolution.bias.any()


def test_matrices_of_gpt2_start_small_and_smaller_where_they_write_to_the_residual_stream() -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 96, "num_heads": 2, "num_layers": 2}
    model = build_model(
        "hybrid", vocab_size=50, pattern=["maxplus", "gla"], init="gpt2", feed_forward="gelu", **settings
    )
    maxplus, gla = model.layers[0].mixer, model.layers[1].mixer
    feed_forward = model.layers[0].feed_forward
    for module in (model.head, maxplus.projection, gla.streams.projection, gla.joined.gate, feed_forward.up):
        assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    for module in (gla.joined.out, feed_forward.down):
        assert float(module.weight.detach().std()) == pytest.approx(0.02 / 2, rel=0.05)
    assert not feed_forward.up.bias.any() and not feed_forward.down.bias.any()
    assert maxplus.decay_projection.bias.any()  # a decay starts where its mixer wants it


def test_the_root_of_rglru_is_not_steeper_than_its_bound() -> None:
    from samout_train.models.rglru import _Root

    x = torch.tensor([0.0, 1e-12, 0.25], requires_grad=True)
    y = _Root.apply(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert y.tolist() == pytest.approx([0.0, 1e-6, 0.5]) and gradient.tolist() == pytest.approx([1000.0, 1000.0, 1.0])


@pytest.mark.parametrize("feed_forward", ["swiglu", "relu_gated", "gelu"])
@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_a_layer_adds_mixer_and_feed_forward_behind_their_norms(norm: str, feed_forward: str) -> None:
    torch.manual_seed(0)
    settings = {"hidden_size": 12, "num_heads": 2, "num_layers": 1, "norm": norm, "feed_forward": feed_forward}
    model = build_model("gla", vocab_size=9, **settings).double()
    layer, x = model.layers[0], some_input(5)
    x_mixed = x + layer.mixer(layer.mixer_norm(x), None)[0]
    f, u = layer.feed_forward, layer.feed_forward_norm(x_mixed)
    inner = {
        "swiglu": lambda: f.up(u) * F.silu(f.gate(u)),
        "relu_gated": lambda: f.up(u) * F.relu(f.gate(u)),
        "gelu": lambda: F.gelu(f.up(u)),
    }[feed_forward]()
    torch.testing.assert_close(layer(x, None)[0], x_mixed + f.down(inner), rtol=1e-12, atol=1e-12)
    assert len(inner[0, 0]) == {"swiglu": 32, "relu_gated": 32, "gelu": 48}[feed_forward]
    assert isinstance(layer.mixer_norm, nn.RMSNorm if norm == "rms" else nn.LayerNorm)


GATED = {"output_norm": "head", "output_gate": "silu"}


@pytest.mark.parametrize("name", ["transformer_modern", "maxplus", "v8"])
@pytest.mark.parametrize("norm", ["head", "all"])
def test_an_output_gate_multiplies_what_any_mixer_gives_by_what_it_read(name: str, norm: str) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "num_layers": 1, "convolution_size": 3}
    model = build_model(name, vocab_size=9, output_norm=norm, output_gate="sigmoid", **sizes).double().eval()
    layer, x = model.layers[0], torch.randn(2, 5, WIDTH, dtype=torch.float64)
    seen: dict[str, Tensor] = {}
    layer.mixer.register_forward_hook(lambda _, given, made: seen.update(u=made[0]))
    layer.output_gate.register_forward_hook(lambda _, given, made: seen.update(read=given[1], made=made))
    layer(x, None)
    before = {"transformer_modern": "mixer_norm", "maxplus": "norm"}.get(name)
    assert torch.equal(seen["read"], x if before is None else getattr(layer, before)(x))
    u = seen["u"].unflatten(-1, (HEADS if norm == "head" else 1, -1))
    u = rms(u, layer.output_gate.norm.weight).flatten(-2)
    wanted = u * torch.sigmoid(seen["read"] @ layer.output_gate.gate.weight.T)
    torch.testing.assert_close(seen["made"], wanted, rtol=1e-12, atol=1e-12)


WITH_A_GATE = ["gla", "retnet", "mlstm", "gated_deltanet", "mamba2", "rglru"]
WITH_A_CONVOLUTION = ["deltanet", "gated_deltanet", "mlstm", "mamba2", "rglru"]


def refusal(name: str, *words: str) -> str:
    """What is answered to settings of a model; nothing if they are taken."""
    _, found = checked_config([f"model={name}", "device=cpu", *words])
    return "\n".join(map(str, found))


@pytest.mark.parametrize("name", WITH_A_GATE)
def test_a_gate_for_mixers_with_a_gate_of_their_own_is_refused(name: str) -> None:
    changes_nothing = "changes nothing, as the mixer has an output gate of its own: set model.mixer.output_gate"
    assert refusal(name, "model.output_gate=silu") == f"model.output_gate=silu: {changes_nothing}"
    instead = {"mamba2": "output_gate=none", "rglru": "output_gate=none"}.get(name, "output_norm")
    assert refusal(name, "model.output_norm=head").endswith(f": set model.mixer.{instead}")
    assert not refusal(name, "model.output_gate=silu", "model.output_norm=head", "model.mixer.output_gate=none")
    assert not refusal(name, "model.output_gate=none", "model.output_norm=none")


@pytest.mark.parametrize("name", WITH_A_CONVOLUTION)
def test_a_convolution_before_mixers_with_a_convolution_of_their_own_is_refused(name: str) -> None:
    changes_nothing = "changes nothing, as the mixer has a convolution of its own: set model.mixer.convolution_size"
    assert refusal(name, "model.convolution_size=4") == f"model.convolution_size=4: {changes_nothing}"
    assert not refusal(name, "model.convolution_size=4", "model.mixer.convolution_size=0")
    assert not refusal(name, "model.convolution_size=0")


def test_a_hybrid_refuses_only_what_no_mixer_of_its_pattern_takes() -> None:
    pattern = "model.pattern=[gla,mamba2]"
    assert not refusal("hybrid", "model.pattern=[gla,window_attention]", "model.output_gate=silu")
    assert not refusal("hybrid", pattern, "model.convolution_size=3")
    changes_nothing = "changes nothing, as each mixer of the pattern has an output gate of its own"
    instead = "set model.mixers.gla.output_gate, model.mixers.mamba2.output_gate"
    assert (
        refusal("hybrid", pattern, "model.output_gate=silu") == f"model.output_gate=silu: {changes_nothing}: {instead}"
    )
    own = "model.pattern=[mlstm,rglru]"
    assert "model.convolution_size=3: changes nothing" in refusal("hybrid", own, "model.convolution_size=3")
    assert not refusal("hybrid", own) and not refusal("hybrid", own, "model.convolution_size=4")  # as in its YAML


def test_settings_that_change_nothing_are_taken_from_a_yaml_for_many_models_and_in_a_run_that_is_resumed() -> None:
    assert not refusal("gated_deltanet", "experiment=zoology_small")
    assert not refusal("gla", "model.output_gate=silu", "resume=auto", "run_dir=outputs/begun")


def test_a_gate_that_changes_nothing_is_refused_in_python() -> None:
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "num_layers": 1}
    with pytest.raises(ConfigError, match=r"model.output_norm=head: changes nothing, as the mixer has an output gate"):
        build_model("gla", vocab_size=9, **sizes, **GATED)
    mixed = build_model("hybrid", vocab_size=9, **sizes | {"num_layers": 2}, pattern=["gla", "maxplus"], **GATED)
    assert [layer.output_gate is None for layer in mixed.layers] == [True, False]


def test_an_output_gate_counts_as_the_mixer_and_in_the_operations() -> None:
    sizes = {"hidden_size": WIDTH, "num_heads": HEADS, "num_layers": 1}
    plain, gated = build_model("v8", vocab_size=9, **sizes), build_model("v8", vocab_size=9, **sizes, **GATED)
    assert gated.part_of("layers.0.output_gate.gate.weight") == "mixer"
    assert gated.forward_flops_per_token(8) - plain.forward_flops_per_token(8) == 2 * WIDTH**2


VARIANTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "negative eigenvalues": ("gated_deltanet", {}, {"negative_eigenvalues": True}),
    "a window": ("transformer_modern", {}, {"window": 16, "qk_norm": False}),
    "a convolution before the mixer": ("retnet", {"convolution_size": 4, "norm": "layer"}, {}),
    "a convolution of the streams": ("gla", {"feed_forward": "gelu"}, {"convolution_size": 4, "output_gate": "none"}),
    "no convolution": ("gated_deltanet", {"feed_forward": "relu_gated"}, {"convolution_size": 0, "output_norm": "all"}),
    "rglru alone": ("rglru", {}, {"convolution_size": 0}),
    "a gate on attention": ("transformer_modern", {"convolution_size": 4, **GATED}, {}),
}


@pytest.mark.nightly
@pytest.mark.parametrize("variant", mostly_nightly(VARIANTS, {"a window"}))
def test_every_check_of_verify_holds_for_what_can_be_set(variant: str) -> None:
    from samout_train.evaluation.verify import ModelUnderTest, verify

    name, settings, mixer = VARIANTS[variant]
    node = compose_config([f"model={name}"]).config["model"]["mixer"] | mixer

    def built(**sizes: int) -> nn.Module:
        torch.manual_seed(0)
        given = {"hidden_size": 24, "num_heads": 4, "num_layers": 3} | sizes | settings
        return build_model(name, vocab_size=37, mixer=node, **given)

    subject = ModelUnderTest(built, 37, 3, most_tokens=110)
    smaller = ModelUnderTest(lambda: built(hidden_size=16, num_layers=2), 37, 3)
    rows = list(verify(subject, smaller, device=torch.device("cpu"), compiles=False))
    assert [row for row in rows if not row.passed] == []


def hybrid(pattern: list[str], **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_heads": 4, "num_layers": 3} | settings
    return build_model("hybrid", vocab_size=37, pattern=pattern, **sizes)


def test_a_pattern_repeats_over_the_layers_and_gives_a_convolution_to_those_without() -> None:
    model = hybrid(["maxplus", "gated_deltanet"], num_layers=5)
    kinds = [type(layer.mixer).__name__ for layer in model.layers]
    assert kinds == ["MaxPlus", "DeltaNet", "MaxPlus", "DeltaNet", "MaxPlus"]
    assert [layer.convolution is not None for layer in model.layers] == [True, False, True, False, True]


@pytest.mark.parametrize("name", spread(sorted(path.stem for path in (CONF / "mixer").glob("*.yaml")), 6))
def test_every_mixer_mixes_with_another_one_in_pieces_as_the_whole(name: str) -> None:
    model = hybrid([name, "window_attention"], num_layers=2).eval()
    ids = torch.randint(37, (2, 30), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        whole, state = model(ids)
        assert 2 * model.state_bytes(30) == state_bytes(state)  # type: ignore[operator]
        _, state = model(ids[:, :9])
        rest, _ = model(ids[:, 9:], state)
    assert distance(rest, whole[:, 9:]) < 1e-5


def test_a_pattern_names_the_mixers_of_a_user_too(tmp_path: Path) -> None:
    (tmp_path / "mine" / "mixer").mkdir(parents=True)
    (tmp_path / "mine" / "experiment").mkdir()
    (tmp_path / "mine" / "mixer" / "small_window.yaml").write_text("defaults:\n  - window_attention\nwindow: 4\n")
    text = "# @package _global_\ndefaults:\n  - override /model: hybrid\nmodel:\n  pattern: [small_window]\n"
    (tmp_path / "mine" / "experiment" / "windows.yaml").write_text(text)
    folders = [str(tmp_path / "mine")]
    words = ["model=hybrid", "model.pattern=[maxplus,small_window]", "model.mixers.small_window.qk_norm=false"]
    composed, found = checked_config([*words, "device=cpu"], config_dirs=folders)
    assert composed is not None and not found and OmegaConf.create(composed.yaml).model == composed.config["model"]
    model = build(composed.config["model"], vocab_size=9, pad_id=None, hidden_size=12, num_heads=2, num_layers=2)
    mixer = model.layers[1].mixer
    assert type(mixer).__name__ == "RotaryAttention" and mixer.window == 4
    assert composed.config["model"]["mixers"]["small_window"]["qk_norm"] is False
    as_before = [*words, "+mixer@model.mixers.small_window=small_window"]
    assert compose_config(as_before, config_dirs=folders).config["model"] == composed.config["model"]
    by_yaml = compose_config(["experiment=windows"], config_dirs=folders).config["model"]["mixers"]
    assert by_yaml["small_window"]["window"] == 4
    without = compose_config(["model=hybrid"], config_dirs=folders).config["model"]["mixers"]
    assert "small_window" not in without and by_yaml.keys() == without.keys() | {"small_window"}


def test_a_name_that_no_mixer_has_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ConfigError, match=r"model.pattern=\[maxminus\]: no such mixer: name some of attention, counting, delta"
    ):
        hybrid(["maxplus", "maxminus"])
    with pytest.raises(ConfigError, match=r"model.pattern=\[\]: names no mixer"):
        hybrid([])


@pytest.mark.slow
def test_a_window_decodes_with_a_state_that_is_the_window() -> None:
    torch.manual_seed(0)
    node = compose_config(["model=transformer_modern"]).config["model"]["mixer"] | {"window": 8}
    model = build_model("transformer_modern", vocab_size=37, hidden_size=24, num_heads=4, num_layers=2, mixer=node)
    state, sizes = None, []
    with torch.inference_mode():
        for token in range(20):
            _, state = model.eval()(torch.tensor([[token]]), state)
            sizes.append([part.keys_BHSK.shape[2] for part in state])
    assert sizes == [[min(7, token + 1)] * 2 for token in range(20)]
