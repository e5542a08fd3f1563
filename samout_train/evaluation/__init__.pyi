from .ablation import EVERYWHERE as EVERYWHERE, added_nats as added_nats
from .accuracy import Accuracy as Accuracy, accuracy as accuracy
from .charts import (
    DOTS_PER_INCH as DOTS_PER_INCH,
    draw_extrapolation as draw_extrapolation,
    draw_heat_map as draw_heat_map,
    draw_search as draw_search,
    heat_map as heat_map,
    missing_charts as missing_charts,
)
from .decoding import Decoder as Decoder
from .evaluator import (
    Evaluation as Evaluation,
    SpreadBatches as SpreadBatches,
    evaluate as evaluate,
    has_targets as has_targets,
    in_order as in_order,
)
from .extrapolation import FAR_TIMES as FAR_TIMES, Extrapolation as Extrapolation, perplexity as perplexity
from .generate import (
    Timed as Timed,
    generate_samples as generate_samples,
    generate_text as generate_text,
    generate_tokens as generate_tokens,
    text_of as text_of,
)
from .state_health import (
    LayerHealth as LayerHealth,
    calm_rows as calm_rows,
    growing_layers as growing_layers,
    positions_of as positions_of,
    state_health as state_health,
)
from .streaming import Reader as Reader, stream_of as stream_of
