"""`python -m samout_train serve run=DIR`: answer OpenAI's clients over HTTP, and serve a chat page."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from samout_train.cli.verb import verb
from samout_train.config import DeviceName, NonNegative, Penalty, Positive, Range, Seed, Threads, TopShare
from samout_train.runtime import install_line

if TYPE_CHECKING:
    import socket

    from samout_train.checkpoint import LoadedRun
    from samout_train.evaluation import Sampling

Port = Range(0, 65535)
LOOPBACK = ("127.0.0.1", "localhost")
MEGABYTE = 1 << 20


@verb
def serve(
    *,
    run: str,
    host: str,
    port: Annotated[int, Port],
    name: str | None,
    max_batch: Annotated[int, Positive],
    max_waiting: Annotated[int, Positive],
    max_prompt_tokens: Annotated[int, Positive],
    max_new_tokens: Annotated[int, Positive],
    cache_megabytes: Annotated[int, NonNegative],
    temperature: Annotated[float, NonNegative],
    top_k: Annotated[int, Positive] | None,
    top_p: Annotated[float, TopShare] | None,
    repetition_penalty: Annotated[float, Penalty],
    penalty_window: Annotated[int, Positive],
    seed: Annotated[int, Seed],
    device: DeviceName,
    kernels: Literal["auto", "reference", "fused"],
    threads: Annotated[int, Threads] | None,
) -> int:
    """Answers OpenAI's clients over HTTP with a trained model, and serves a chat page.

    Returns:
        The exit code: 1 a checkpoint is damaged or the port is not available, 2 the request was wrong, 130 or 143
        stopped by a signal.
    """
    uvicorn = _uvicorn()
    from samout_train.checkpoint import load_trained
    from samout_train.evaluation import Sampling
    from samout_train.evaluation.serving import Engine, application
    from samout_train.ops import use_kernels
    from samout_train.runtime import use_device

    on = use_device(device, threads)
    use_kernels(kernels)
    loaded = load_trained(run)
    defaults = Sampling(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        penalty_window=penalty_window,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    reader = _reader(loaded, name, defaults, max_prompt_tokens)
    engine = Engine(
        loaded.model.to(on), max_batch=max_batch, max_waiting=max_waiting, cache_bytes=cache_megabytes * MEGABYTE
    )
    hosts = list(LOOPBACK) if host in LOOPBACK else ["*"]
    try:
        print(f"{loaded.checkpoint}, step {loaded.step}, on {on}", file=sys.stderr)
        return _serve(uvicorn, application(engine, reader, hosts=hosts), host, port)
    finally:
        engine.close()


def _reader(loaded: "LoadedRun", name: str | None, defaults: "Sampling", max_prompt_tokens: int) -> Any:
    """Return the reader that checks requests for a run."""
    from samout_train.evaluation import Template
    from samout_train.evaluation.serving import Limits, Reader

    folder = loaded.checkpoint.resolve().parent  # of an export; a run has its checkpoints in a folder
    if folder.name == "checkpoints":
        folder = folder.parent
    return Reader(
        name=name or folder.name,
        vocabulary=loaded.require_vocabulary(),
        defaults=defaults,
        limits=Limits(max_prompt_tokens=max_prompt_tokens, max_new_tokens=defaults.max_new_tokens),
        template=Template.of(loaded.data_node, loaded.line_ends),
        max_seq_len=getattr(loaded.model, "max_seq_len", None),
    )


def _serve(uvicorn: Any, asgi: Any, host: str, port: int) -> int:
    """Serve until a signal arrives; return 128 plus its number, or 1 if the port is not available."""
    import socket

    config = uvicorn.Config(asgi, log_level="warning", access_log=False, ws="none", lifespan="off")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        _keep_port(listening)
        try:
            listening.bind((host, port))
            listening.listen()
        except OSError as error:
            print(f"host={host} port={port}: {error.strerror}: give another port", file=sys.stderr)
            return 1
        address = host
        if family == socket.AF_INET6:
            address = f"[{address}]"
        print(f"http://{address}:{listening.getsockname()[1]}/ has the chat page, /v1 the interface", file=sys.stderr)
        if host not in LOOPBACK:
            print("anybody who reaches this machine can use it: there is no password", file=sys.stderr)
        server = uvicorn.Server(config)
        with _stopping(server) as signals:
            server.run(sockets=[listening])
    return 128 + signals[0] if signals else 1


def _keep_port(listening: "socket.socket") -> None:
    """Let a server have the port of one that has just ended, and share it with no other."""
    import socket

    option: int | None = getattr(socket, "SO_EXCLUSIVEADDRUSE", None)  # of Windows
    if os.name == "posix":
        option = socket.SO_REUSEADDR  # on Windows, this shares the port of a running server
    if option is not None:
        listening.setsockopt(socket.SOL_SOCKET, option, 1)


@contextmanager
def _stopping(server: Any) -> Iterator[list[int]]:
    """Let SIGINT and SIGTERM end a server after the requests in progress; a second signal ends it at once."""
    signals: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        server.force_exit = bool(signals)
        server.should_exit = True
        signals.append(number)

    @contextmanager
    def left_alone() -> Iterator[None]:
        yield

    server.capture_signals = left_alone  # uvicorn would raise the signal again at its end
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _uvicorn() -> Any:
    """Import and return uvicorn.

    Raises:
        ValueError: if it is not installed; the message says how to install it.
    """
    try:
        import starlette  # noqa: F401
        import uvicorn
    except ImportError as error:
        raise ValueError(f"serve: needs starlette and uvicorn: {install_line('serve')}") from error
    return uvicorn
