"""V1 and V8 against the golden files that the published programs wrote: forward, gradients, Adam steps."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from samout_train.models import SamOut, cross_entropy_sum, load_published, rename_published
from samout_train.training.optimizers.adam import adam


class Golden:
    def __init__(self, shared: Path, variant: str) -> None:
        with np.load(shared / "golden" / f"samout_{variant}_golden.npz") as file:
            self.arrays: dict[str, Any] = {name: file[name] for name in file.files}
        self.config = json.loads(str(self.arrays["config"]))
        self.ids = torch.from_numpy(self.arrays["ids"])

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        found = {name.removeprefix(prefix): value for name, value in self.arrays.items() if name.startswith(prefix)}
        return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}

    def model(self) -> SamOut:
        return load_published(self.tensors("weight/"), num_heads=self.config["num_heads"])

    def loss(self, model: SamOut) -> Tensor:
        logits, _ = model(self.ids[:, :-1])
        targets = self.ids[:, 1:]
        pad_id = self.config["pad_id"]
        return cross_entropy_sum(logits, targets, pad_id) / (targets != pad_id).sum()


@pytest.fixture(params=["v1", "v8"])
def golden(request: pytest.FixtureRequest, shared: Path) -> Golden:
    return Golden(shared, request.param)


def distance(got: Tensor, wanted: Tensor) -> float:
    """Relative in norm."""
    got, wanted = got.detach().double(), wanted.double()
    return float((got - wanted).norm() / wanted.norm())


def test_logits_are_those_of_the_published_program(golden: Golden) -> None:
    logits, _ = golden.model()(golden.ids[:, :-1])
    assert distance(logits, torch.from_numpy(golden.arrays["logits_float64"])) < 1e-5


def test_loss_and_gradients_are_those_of_the_published_program(golden: Golden) -> None:
    model = golden.model()
    loss = golden.loss(model)
    loss.backward()
    assert loss.item() == pytest.approx(float(golden.arrays["loss"]), rel=1e-5)
    wanted = rename_published(golden.tensors("grad/"))
    assert wanted.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert distance(parameter.grad, wanted[name]) < 1e-4, name


def test_adam_steps_are_those_of_the_published_program(golden: Golden) -> None:
    model = golden.model()
    optimizer = adam(model, lr=golden.config["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for _ in golden.arrays["adam_losses"]:
        loss = golden.loss(model)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(golden.arrays["adam_losses"].tolist(), rel=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_logits_and_gradients_on_cuda_are_those_of_the_published_program(golden: Golden) -> None:
    model = golden.model().cuda()
    golden.ids = golden.ids.cuda()
    logits, _ = model(golden.ids[:, :-1])
    assert distance(logits.cpu(), torch.from_numpy(golden.arrays["logits_float64"])) < 1e-5
    golden.loss(model).backward()
    wanted = rename_published(golden.tensors("grad/"))
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and distance(parameter.grad.cpu(), wanted[name]) < 1e-4, name


def test_a_published_checkpoint_loads_from_its_file(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "pretrain_768.pth"
    torch.save(golden.tensors("weight/"), path)
    logits, _ = load_published(path, num_heads=golden.config["num_heads"])(golden.ids[:, :-1])
    assert torch.equal(logits, golden.model()(golden.ids[:, :-1])[0])


def published_v1() -> dict[str, Tensor]:
    layer = {f"self_attention.head{index}.weight": torch.zeros(4, 4) for index in range(3)}
    layer |= {"ffn.ffn1.weight": torch.zeros(2, 4), "ffn.ffn1.bias": torch.zeros(2), "alpha": torch.tensor(0.5)}
    layer |= {"ffn.gate.weight": torch.zeros(2, 4), "ffn.gate.bias": torch.zeros(2)}
    layer |= {"ffn.ffn2.weight": torch.zeros(4, 2), "ffn.ffn2.bias": torch.zeros(4)}
    layer |= {"layer_norm.weight": torch.ones(4), "layer_norm.bias": torch.zeros(4)}
    return {"em.weight": torch.zeros(7, 4)} | {f"decoder_layers.0.{name}": value for name, value in layer.items()}


def test_v1_needs_its_heads_and_says_so() -> None:
    with pytest.raises(ValueError, match="num_heads is missing"):
        load_published(published_v1())
    assert load_published(published_v1(), num_heads=2).head is None


def test_the_v1_of_the_public_repository_gets_its_own_sentence() -> None:
    other = published_v1() | {"pos.weight": torch.zeros(9, 4), "down.0.weight": torch.zeros(4, 8)}
    with pytest.raises(ValueError, match="public repository, which is another program than V1 here: it concatenates"):
        load_published(other, num_heads=2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda w: w.pop("decoder_layers.0.self_attention.head1.weight"),
            "decoder_layers.0.self_attention.head1.weight is missing",
        ),
        (lambda w: w.pop("em.weight"), "em.weight is missing"),
        (lambda w: w.pop("decoder_layers.0.alpha"), "decoder_layers.0.alpha is missing"),
        (lambda w: w.update({"transformer.wte.weight": torch.zeros(2)}), "transformer.wte.weight is no parameter"),
    ],
)
def test_what_is_no_published_checkpoint_is_refused(damage: Any, message: str) -> None:
    weights = published_v1()
    damage(weights)
    with pytest.raises(ValueError, match=message):
        load_published(weights, num_heads=2)


def test_files_that_are_no_checkpoint_are_refused_without_running_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path(tmp_path / "ran").touch, ())

    evil, empty = tmp_path / "evil.pth", tmp_path / "empty.pth"
    torch.save({"em.weight": Evil()}, evil)
    empty.touch()
    for path in (evil, empty, tmp_path / "absent.pth"):
        with pytest.raises(ValueError, match=path.name):
            load_published(path)
    assert not (tmp_path / "ran").exists()
