"""What the models of conf/model have: heads, and states that grow in part or altogether."""

from samout_train.config import CONF

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
HEADED = {name for name in NAMES if "\nnum_heads:" in (CONF / "model" / f"{name}.yaml").read_text("utf-8")}
ONLY_GROWS = {"transformer", "transformer_modern"}  # the state of each layer
STATE_GROWS = {*ONLY_GROWS, "hybrid", "lstm_attention"}  # that of one or more layers
