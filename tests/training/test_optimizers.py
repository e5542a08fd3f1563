"""Settings reach torch's optimizers, decay reaches matrices only, and Muon is torch's, matrix by matrix."""

from collections import Counter
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor

from samout_train import build_model
from samout_train.training.optimizers import muon as muon_module
from samout_train.training.optimizers.adam import adam
from samout_train.training.optimizers.adamw import adamw
from samout_train.training.optimizers.muon import hidden_matrices, muon, nearest_orthogonal, product_dtype
from tests.support.marks import spread


def test_adam_is_torchs_with_its_defaults() -> None:
    model = build_model("v8", vocab_size=9, hidden_size=12, num_heads=2, num_layers=1)
    got, torchs = adam(model, lr=1e-3, betas=(0.9, 0.999), eps=1e-8), torch.optim.Adam(model.parameters(), lr=1e-3)
    keys = ("lr", "betas", "eps", "weight_decay", "amsgrad")
    assert all(got.param_groups[0][key] == torchs.param_groups[0][key] for key in keys)


@pytest.mark.parametrize("betas", [(0, 0.999), (0, 0), (0.9, 0)])
def test_a_whole_number_is_a_decay_like_any_other(betas: tuple[float, float]) -> None:
    model = build_model("v8", vocab_size=9, hidden_size=12, num_heads=2, num_layers=1)
    made = [adam(model, lr=1e-3, betas=betas, eps=1e-8), adamw(model, lr=1e-3, betas=betas, eps=1e-8, weight_decay=0)]
    assert [optimizer.param_groups[0]["betas"] for optimizer in made] == [betas, betas]


def test_adamw_decays_matrices_and_nothing_else() -> None:
    model = build_model("v1", vocab_size=9, hidden_size=12, num_heads=2, num_layers=2, init="published")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = adamw(model, lr=0.5, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        wanted = before[name] * (1 - 0.5 * 0.1) if parameter.ndim == 2 else before[name]
        torch.testing.assert_close(parameter.detach(), wanted)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model(name, vocab_size=9, hidden_size=8, num_heads=2, num_layers=1)


def muon_of(model: nn.Module) -> torch.optim.Optimizer:
    return muon(model, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1, momentum=0.95, ns_steps=5)


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_muon_steps_each_matrix_of_a_packed_projection_and_adamw_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon_module, "product_dtype", lambda device: torch.bfloat16)  # as in torch.optim.Muon
    model = small("maxplus")
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    hidden = {"layers.0.mixer.projection.weight": 4, "layers.0.mixer.decay_projection.weight": 1}
    hidden |= {f"layers.0.feed_forward.{name}.weight": 1 for name in ("up", "gate", "down")}
    references: dict[str, list[nn.Parameter]] = {}
    for name, weight in weights.items():
        references[name] = [nn.Parameter(part.clone()) for part in weight.chunk(hidden.get(name, 1))]
    by_muon = [part for name in hidden for part in references[name]]
    settings = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.95, "ns_steps": 5}
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Muon(by_muon, adjust_lr_fn="match_rms_adamw", **settings)  # type: ignore[arg-type]
    ]
    rest = [name for name in weights if name not in hidden]
    decayed = [part for name in rest for part in references[name] if part.ndim >= 2]
    plain = [part for name in rest for part in references[name] if part.ndim < 2]
    for group, decay in ((decayed, 0.1), (plain, 0.0)):
        optimizers.append(torch.optim.AdamW(group, lr=0.01, betas=(0.9, 0.99), eps=1e-8, weight_decay=decay))
    optimizer = muon_of(model)
    for seed in (1, 2):
        set_gradients(model, seed)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            for part, gradient in zip(references[name], parameter.grad.chunk(hidden.get(name, 1)), strict=True):
                part.grad = gradient.clone()
        optimizer.step()
        for reference in optimizers:
            reference.step()
    for name, parameter in model.named_parameters():
        wanted = torch.cat([part.detach().reshape(-1) for part in references[name]])
        # AdamW is fused here and not there; a wrong split of a matrix differs by 1e-3.
        torch.testing.assert_close(parameter.detach().reshape(-1), wanted, rtol=1e-5, atol=1e-6, msg=name)


def test_muon_updates_many_matrices_together_as_it_updates_each(monkeypatch: pytest.MonkeyPatch) -> None:
    together, single = small("maxplus"), small("maxplus")
    batches: list[int] = []

    def counted(matrices: torch.Tensor, ns_steps: int) -> torch.Tensor:
        batches.append(len(matrices))
        return nearest_orthogonal(matrices, ns_steps)

    monkeypatch.setattr(muon_module, "nearest_orthogonal", counted)
    for model, largest in ((together, muon_module.LARGEST_BATCH), (single, 1)):
        monkeypatch.setattr(muon_module, "LARGEST_BATCH", largest)
        optimizer = muon_of(model)
        set_gradients(model, 1)
        optimizer.step()
    assert batches == [8] + [1] * 8  # the mixer's five of 8 x 8 and the feed-forward's three
    for one, other in zip(together.parameters(), single.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_become_nearly_one_and_directions_stay(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(muon_module, "product_dtype", lambda device: dtype)
    matrices = torch.randn(3, 6, 10, generator=torch.Generator().manual_seed(0))
    found = nearest_orthogonal(matrices, 5)
    assert found.dtype == dtype
    values = torch.linalg.svdvals(found.float())
    assert values.min() > 0.5
    assert values.max() < 1.5
    u, _, vh = torch.linalg.svd(matrices, full_matrices=False)
    in_its_directions = u.mT @ found.float() @ vh.mT
    off_diagonal = in_its_directions - torch.diag_embed(in_its_directions.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize(
    ("capabilities", "wanted"),
    [
        ({"avx2": True}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_muon_multiplies_in_bfloat16_where_the_processor_has_it(
    capabilities: dict[str, bool], wanted: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert product_dtype.__wrapped__(torch.device("cpu")) == wanted


def test_muon_multiplies_in_float32_where_torch_does_not_say_what_the_processor_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert product_dtype.__wrapped__(torch.device("cpu")) == torch.float32


MODELS = sorted(path.stem for path in Path("conf/model").glob("*.yaml"))


@pytest.mark.parametrize("name", spread(MODELS, 4))
def test_muon_has_each_parameter_in_one_group_and_only_hidden_matrices_in_its_own(name: str) -> None:
    node = yaml.safe_load(Path(f"conf/model/{name}.yaml").read_text(encoding="utf-8"))
    sizes = {key: 2 for key in ("num_heads", "num_layers") if key in node}
    model = build_model(name, vocab_size=9, hidden_size=16, **sizes)
    groups = muon_of(model).param_groups
    grouped = Counter(id(parameter) for group in groups for parameter in group["params"])
    assert grouped == Counter(id(parameter) for parameter in model.parameters())
    names = {id(parameter): parameter_name for parameter_name, parameter in model.named_parameters()}
    own = {names[id(parameter)] for parameter in groups[0]["params"]}
    assert own
    assert not [
        one for one in own if "embedding" in one or "norm" in one or "convolution" in one or one == "head.weight"
    ]


def test_muon_knows_the_gates_of_recurrent_layers() -> None:
    rows = {name: list(hidden_matrices(small_rnn(name)).values()) for name in ("rnn", "gru", "lstm")}
    assert rows == {"rnn": [[8], [8]], "gru": [[8] * 3, [8] * 3], "lstm": [[8] * 4, [8] * 4]}


def small_rnn(name: str) -> nn.Module:
    return build_model(name, vocab_size=9, hidden_size=8, num_layers=1)


def test_muon_resumes_with_the_state_that_was_saved() -> None:
    straight, resumed = small("maxplus"), small("maxplus")
    one, other = muon_of(straight), muon_of(resumed)
    for model, optimizer in ((straight, one), (resumed, other)):
        set_gradients(model, 1)
        optimizer.step()
    again = muon_of(resumed)
    again.load_state_dict(deepcopy(other.state_dict()))
    for model, optimizer in ((straight, one), (resumed, again)):
        set_gradients(model, 2)
        optimizer.step()
    for wanted, found in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(wanted, found)


def test_muon_refuses_shards() -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Linear(2, 2)
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model.weight = nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
        with pytest.raises(ValueError, match=r"trainer\.parallel=ddp"):
            muon_of(model)
    finally:
        torch.distributed.destroy_process_group()
