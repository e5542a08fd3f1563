"""The keys of conf/config.yaml: the schema of a training run, and of every verb that takes all of its settings."""

from typing import Annotated, Any, Literal

from samout_train.config.ranges import DeviceName, Seed, Threads

OnLeak = Literal["refuse", "warn"]


def root_keys(
    *,
    seed: Annotated[int, Seed],
    device: DeviceName,
    precision: Literal["auto", "fp32", "bf16", "fp16"],
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None = None,
    run_dir: str,
    resume: str | None,
    init_from: str | None = None,
    on_leak: OnLeak = "refuse",
    model: Any,
    data: Any,
    optimizer: Any,
    schedule: Any,
    trainer: Any,
    checkpoint: Any,
    callbacks: Any,
) -> None:
    """Declare the keys of the root; groups are checked against the signatures of what they build."""
