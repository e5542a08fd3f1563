"""CUDA tensors without CUDA: fake tensors, with autograd and autocast, in a torch that was built without CUDA.

A fake tensor has a shape, a dtype and a device, but no data. torch's autograd asks for streams of the device, which a
torch for CPUs lacks. So a library that answers is compiled here, with g++ and torch's headers, and loaded. Import this
module before torch, in a process of its own.
"""

import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

GUARD = """
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <optional>
struct Guard : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::CUDA> {
  c10::Device device() const { return c10::Device(c10::DeviceType::CUDA, 0); }
  c10::Stream stream() const { return c10::Stream(c10::Stream::DEFAULT, device()); }
  c10::Device exchangeDevice(c10::Device) const override { return device(); }
  c10::Device getDevice() const override { return device(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);
// Loaded before torch's own functions of these names, these are the ones that are called.
namespace at::accelerator {
std::optional<c10::DeviceType> getAccelerator(bool) { return c10::DeviceType::CUDA; }
bool isAccelerator(c10::DeviceType type) { return type == c10::DeviceType::CUDA; }
} // namespace at::accelerator
namespace at {
struct CUDAHooksInterface;
static long yes() { return 1; }
namespace detail {
const CUDAHooksInterface& getCUDAHooks() {  // each of its methods returns 1 or true
  static void* methods[128];
  static void** object = methods;
  for (auto& method : methods) method = reinterpret_cast<void*>(&yes);
  return *reinterpret_cast<const CUDAHooksInterface*>(&object);
}
} // namespace detail
} // namespace at
"""


def _load_guard() -> None:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None and "torch" not in sys.modules, "import this before torch"
    root = Path(spec.origin).parent
    if list((root / "lib").glob("libtorch_cuda*")):
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder) / "guard.cpp", Path(folder) / "guard.so"
        source.write_text(GUARD)
        command = ["g++", "-std=c++20", "-shared", "-fPIC", f"-I{root / 'include'}", source, "-o", library]
        subprocess.run(command, check=True)
        ctypes.CDLL(str(root / "lib" / "libc10.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)


_load_guard()

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

DEVICE = torch.device("cuda:0")
# torch has no kernels on meta tensors for these two, which change their inputs and return nothing.
UPDATES = torch.library.Library("aten", "IMPL", "Meta")
for name in ("_fused_adam_.tensor_lr", "_fused_adamw_.tensor_lr"):
    UPDATES.impl(name, lambda *args, **kwargs: None)
# Operations that launch nothing: allocations and views.
NO_LAUNCH = {
    "device",
    "empty",
    "empty_like",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "detach",
    "alias",
    "lift_fresh",
}
NO_LAUNCH |= {"view", "_unsafe_view", "unsafe_chunk", "reshape", "_reshape_alias", "expand", "slice", "select", "split"}
NO_LAUNCH |= {"split_with_sizes", "t", "transpose", "permute", "squeeze", "unsqueeze", "unbind", "as_strided", "chunk"}
COPIES = {"_to_copy", "copy_", "to"}
# Operations that make the host wait for the device, or make later operations depend on the data of a tensor.
WAITS = {"_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "bincount"}


class Operations(TorchDispatchMode):
    """Record all dispatched operations in order.

    Attributes:
        all: The name of each operation, the shapes of its results, and its numeric arguments.
        launches: Names of operations that launch a kernel.
        waits: Names of operations that make the host wait, or whose result shapes depend on data.
        crossings: Names of operations between the host's and the device's memory; a graph can have none.
    """

    def __init__(self) -> None:
        super().__init__()
        self.all: list[tuple[Any, ...]] = []
        self.launches: list[str] = []
        self.waits: list[str] = []
        self.crossings: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Execute and record an operation."""
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        on_device = [tensor for tensor in results + given if tensor.device.type == DEVICE.type]
        numbers = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, int | float)]
        self.all.append((name, tuple(tuple(tensor.shape) for tensor in results), tuple(numbers)))
        if len({tensor.device.type for tensor in results + given if tensor.ndim or name in COPIES}) > 1:
            self.crossings.append(name)
        if name in WAITS and any(tensor.device.type == DEVICE.type for tensor in given):
            self.waits.append(name)
        if name not in NO_LAUNCH and on_device:
            self.launches.append(name)
        return result


def on_fake_device(model: nn.Module) -> nn.Module:
    """Replace a model's tensors by fake ones on CUDA; called inside `faking`."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                like = torch.empty(parameter.shape, dtype=parameter.dtype, device=DEVICE)
                module._parameters[name] = nn.Parameter(like, requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=DEVICE)
    return model


@contextmanager
def faking() -> Iterator[None]:
    """Make every new tensor a fake one, and replace the other parts of CUDA that a training step uses."""
    with ExitStack() as patches:
        if torch.version.cuda is None:
            patches.enter_context(patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False))
            patches.enter_context(patch.object(torch.cuda, "Event", MagicMock))
            patches.enter_context(patch.object(torch.cuda, "current_stream", MagicMock()))
            patches.enter_context(patch.object(torch.cuda, "get_rng_state", lambda device: None))
            patches.enter_context(patch.object(torch.cuda, "is_bf16_supported", lambda *_, **__: True))
        # torch uses its foreach kernels only for plain tensors; fake tensors represent these.
        patches.enter_context(patch.object(torch.nn.utils.clip_grad, "_has_foreach_support", lambda *_: True))
        patches.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield
