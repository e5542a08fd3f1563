"""flash-linear-attention: its naive forms as an oracle where it is installed, and the calls of its kernels."""

import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from samout_train.ops import fla, kernels, use_kernels
from samout_train.ops.delta_rule import delta_rule
from samout_train.ops.linear_attention import linear_attention

KINDS = ["scalar", "channel", "delta", "gated delta"]
ROWS, WIDTH, VALUES = (2, 3, 70), 8, 5


def inputs(kind: str) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw)

    given = {"q": normal(*ROWS, WIDTH), "k": F.normalize(normal(*ROWS, WIDTH), dim=-1), "v": normal(*ROWS, VALUES)}
    if "delta" in kind:
        given["beta"] = 2 * normal(*ROWS).sigmoid()
    if kind in ("scalar", "gated delta"):
        given["log_decay"] = F.logsigmoid(2 * normal(*ROWS))
    if kind == "channel":
        given["log_decay"] = F.logsigmoid(2 * normal(*ROWS, WIDTH))
    return given | {"state": normal(*ROWS[:2], WIDTH, VALUES)}


def ours(q: Tensor, k: Tensor, v: Tensor, **others: Any) -> tuple[Tensor, Tensor]:
    log_decay, state = others.get("log_decay"), others["state"]
    if "beta" in others:
        return delta_rule(q, k, v, others["beta"], log_decay, state)
    return linear_attention(q, k, v, log_decay, state)


@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_are_the_naive_forms_of_flash_linear_attention(kind: str) -> None:
    pytest.importorskip("fla.ops.gla.naive", reason="flash-linear-attention is missing: pip install '.[fla]'")
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    given = {name: tensor.requires_grad_() for name, tensor in inputs(kind).items()}
    last = {"initial_state": given["state"], "output_final_state": True}
    if kind == "delta":  # the one with heads before time
        o, state = delta_rule_recurrence(given["q"], given["k"], given["v"], given["beta"], **last)
    else:
        streams = {name: tensor.transpose(1, 2) for name, tensor in given.items() if name != "state"}
        q, k, v, log_decay = (streams[name] for name in ("q", "k", "v", "log_decay"))
        if kind == "gated delta":
            o, state = naive_recurrent_gated_delta_rule(q, k, v, streams["beta"], log_decay, **last)
        else:
            naive = naive_recurrent_gla if kind == "channel" else naive_recurrent_simple_gla
            o, state = naive(q, k, v, log_decay, **last)
        o = o.transpose(1, 2)
    scaled = given | {"q": given["q"] / WIDTH**0.5}
    got = ours(**scaled)
    torch.testing.assert_close(got, (o, state), rtol=1e-4, atol=1e-5)
    upstream = [torch.randn(each.shape, generator=torch.Generator().manual_seed(1)) for each in (o, state)]
    found, wanted = (torch.autograd.grad(each, list(given.values()), upstream) for each in (got, (o, state)))
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Modules with the names, the layout and the scale of the kernels, which compute by our own chunks."""

    def kernel(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        g: Tensor,
        scale: float,
        initial_state: Tensor,
        output_final_state: bool,
        **beta: Tensor,
    ) -> tuple[Tensor, Tensor]:
        assert output_final_state and g.dtype == torch.float32 and g.isfinite().all() and q.is_contiguous()
        given = {"q": q * scale, "k": k, "v": v, "log_decay": g} | beta
        o, state = ours(**{name: each.transpose(1, 2) for name, each in given.items()}, state=initial_state)
        return o.transpose(1, 2), state

    for name, function in (("gla", "gla"), ("simple_gla", "simple_gla"), ("gated_delta_rule", "gated_delta_rule")):
        module = ModuleType(f"fla.ops.{name}")
        setattr(module, f"chunk_{function}", kernel)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for name in ("fla", "fla.ops"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    yield


@pytest.mark.usefixtures("stand_in")
@pytest.mark.parametrize("kind", [*KINDS, "reset"])
def test_its_kernels_are_called_with_their_layout(kind: str) -> None:
    given = inputs("gated delta" if kind == "reset" else kind)
    if kind == "reset":
        given["log_decay"][:, :, 20] = -torch.inf
    wanted = ours(**given)
    q, k, v, log_decay, state = (given.get(name) for name in ("q", "k", "v", "log_decay", "state"))
    assert q is not None and k is not None and v is not None
    if "beta" in given:
        got = fla.delta_rule(q, k, v, given["beta"], log_decay, state)
    else:
        got = fla.linear_attention(q, k, v, log_decay, state)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_a_decay_of_each_head_is_spread_over_the_batch(stand_in: None) -> None:
    given = inputs("scalar")
    given["log_decay"] = given["log_decay"][:1]
    got = fla.linear_attention(given["q"], given["k"], given["v"], given["log_decay"], given["state"])
    torch.testing.assert_close(got, ours(**given), rtol=1e-5, atol=1e-6)


def test_the_choice_is_logged_with_its_reason_and_torch_runs_where_it_is_missing(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO", "samout_train.ops.kernels")
    find_spec = kernels.importlib.util.find_spec
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None if name == "fla" else find_spec(name))
    use_kernels("auto")
    assert not kernels.has_chunk_kernels("cuda") and not kernels.has_chunk_kernels("cuda")
    use_kernels("reference")
    assert not kernels.has_chunk_kernels("cuda")
    use_kernels("auto")
    assert [record.message.split(": ")[1][:40] for record in caplog.records] == [
        "flash-linear-attention is not installed ",
        "kernels=reference",
    ]


def test_float32_and_the_cpu_keep_to_chunks_in_torch() -> None:
    k = torch.zeros(1, 1, 2, 4)
    assert not fla.takes(k, k) and not fla.takes(k, k.bfloat16())


def test_why_chunks_on_cuda_run_in_torch_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "samout_train.ops.kernels")
    on_cuda: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.float32, shape=(1, 1, 9, 64))
    wide: Any = SimpleNamespace(device=torch.device("cuda"), dtype=torch.bfloat16, shape=(1, 1, 9, 512))
    use_kernels("auto")
    assert not any(fla.takes(given, given) for given in (on_cuda, on_cuda, wide))
    reasons = [record.message for record in caplog.records if "chunks on cuda" in record.message]
    assert len(reasons) == 2 and "half precision, not float32" in reasons[0] and "256 numbers, not 512" in reasons[1]
