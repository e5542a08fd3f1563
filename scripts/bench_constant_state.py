"""Time a token of each model after 100 and after 16,000 tokens: a state of constant size makes both times equal.

    python scripts/bench_constant_state.py [gla rglru ...]

4 layers of width 128 on one thread. Prints medians of processor time; the two places take turns in one process.
"""

import statistics
import sys
import time

import torch
from torch import nn

from samout_train import build_model
from samout_train.evaluation import Decoder
from samout_train.runtime import keep_freed_memory

MODELS = (
    *("v8", "maxplus", "lstm", "gru", "mingru", "retnet", "gla", "mamba2", "hgrn2", "mlstm"),
    *("deltanet", "gated_deltanet", "rglru", "v1", "rnn", "counting"),
)
PLACES = (100, 16_000)
TOKENS, NOT_COUNTED, TOGETHER = 150, 20, 500
VOCAB_SIZE = 128


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    heads = {} if name in ("rnn", "lstm", "gru", "mingru") else {"num_heads": 4}
    return build_model(name, vocab_size=VOCAB_SIZE, hidden_size=128, num_layers=4, **heads).eval()


@torch.inference_mode()
def microseconds(model: nn.Module) -> dict[int, float]:
    """Return the median microseconds of a token, by its place."""
    ids_1T = torch.randint(4, VOCAB_SIZE, (1, PLACES[-1] + TOKENS), generator=torch.Generator().manual_seed(0))
    state, done = None, 0
    decoders, times = {}, {}
    for place in PLACES:
        while done < place:
            end = min(done + TOGETHER, place)
            _, state = model(ids_1T[:, done:end], state)
            done = end
        decoders[place], times[place] = Decoder(model, state), []
    for id_11 in ids_1T[:, PLACES[-1] :].split(1, dim=1):
        for place, decoder in decoders.items():
            started = time.process_time_ns()
            decoder(id_11)
            times[place].append(time.process_time_ns() - started)
    medians = {}
    for place, all_times in times.items():
        medians[place] = statistics.median(all_times[NOT_COUNTED:]) / 1000
    return medians


def main() -> None:
    """Measures and prints a table."""
    torch.set_num_threads(1)
    keep_freed_memory()
    print("| model | token 100, us | token 16,000, us | ratio |\n|---|---|---|---|")
    for name in sys.argv[1:] or MODELS:
        early, late = microseconds(model_of(name)).values()
        print(f"| {name} | {early:,.0f} | {late:,.0f} | {late / early:.3f} |", flush=True)


if __name__ == "__main__":
    main()
