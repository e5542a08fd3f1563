"""What the models of conf/model have: heads, and states that grow."""

from samout_train.config import CONF

NAMES = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
HEADED = {name for name in NAMES if "\nnum_heads:" in (CONF / "model" / f"{name}.yaml").read_text("utf-8")}
STATE_GROWS = {"transformer", "transformer_modern", "hybrid", "lstm_attention"}
