from .ablation import EVERYWHERE as EVERYWHERE, added_nats as added_nats
from .accuracy import (
    Accuracy as Accuracy,
    accuracy_lines as accuracy_lines,
    rows_that_fit as rows_that_fit,
)
from .batches import SpreadBatches as SpreadBatches, has_targets as has_targets, in_order as in_order
from .charts import (
    DOTS_PER_INCH as DOTS_PER_INCH,
    draw_extrapolation as draw_extrapolation,
    draw_search as draw_search,
    heat_map as heat_map,
    missing_charts as missing_charts,
)
from .choices import (
    ChoicesFound as ChoicesFound,
    measure_choices as measure_choices,
)
from .conversation import (
    NEVER_DRAWN as NEVER_DRAWN,
    Conversation as Conversation,
    Sampling as Sampling,
    Template as Template,
    as_json as as_json,
    turns_of_json as turns_of_json,
)
from .evaluator import Evaluation as Evaluation, Evaluator as Evaluator
from .generate import (
    Decoder as Decoder,
    Timed as Timed,
    generate_samples as generate_samples,
    generate_text as generate_text,
    generate_tokens as generate_tokens,
    text_of as text_of,
)
from .lengths import (
    FAR_TIMES as FAR_TIMES,
    PICTURE as PICTURE,
    Extrapolation as Extrapolation,
    extrapolation_table as extrapolation_table,
    perplexity as perplexity,
    stream_of as stream_of,
    write_extrapolation as write_extrapolation,
)
from .looks import LOOKS as LOOKS, Look as Look, looks_of as looks_of
from .state_health import (
    LayerHealth as LayerHealth,
    calm_rows as calm_rows,
    growing_layers as growing_layers,
    positions_of as positions_of,
)
