"""TF32 is said both ways for a process, and refused where there is none."""

import pytest
import torch

from samout_train import build_trainer
from samout_train.runtime import use_tf32

TINY = ["model=v8", "data=random", "device=cpu", "model.hidden_size=12", "model.num_heads=2", "model.num_layers=1"]


def chosen() -> set[str]:
    """What torch has for matrix products, convolutions and recurrent modules in float32."""
    backends = torch.backends
    return {backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision, backends.cudnn.rnn.fp32_precision}


def test_tf32_is_set_both_ways_and_does_not_leak_into_the_next_run() -> None:
    use_tf32(True, torch.device("cuda"))
    assert chosen() == {"tf32"}
    build_trainer(TINY)
    assert chosen() == {"ieee"}


def test_what_reads_the_former_settings_of_torch_goes_on() -> None:
    for tf32 in (True, False, True):
        use_tf32(tf32, torch.device("cuda"))
        assert torch.backends.cuda.matmul.allow_tf32 is tf32 and torch.backends.cudnn.allow_tf32 is tf32
        assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
        with torch.backends.cudnn.flags(enabled=True):
            pass
    use_tf32(False, torch.device("cuda"))


def test_tf32_on_a_cpu_is_refused() -> None:
    with pytest.raises(ValueError, match="is for CUDA, and this run is on cpu"):
        use_tf32(True, torch.device("cpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_tf32_rounds_products_on_cuda() -> None:
    x, exact = torch.randn(256, 256, device="cuda"), None
    for tf32 in (False, True):
        use_tf32(tf32, x.device)
        error = float((x @ x - (x.double() @ x.double())).norm() / (x.double() @ x.double()).norm())
        exact = error if exact is None else exact
    use_tf32(False, x.device)
    assert exact < 1e-6 < 1e-5 < error
