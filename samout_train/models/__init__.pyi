from . import loss as loss
from .cost import (
    TRAINING_TIMES as TRAINING_TIMES,
    estimate_memory_bytes as estimate_memory_bytes,
    num_parameters as num_parameters,
    parameters_by_part as parameters_by_part,
)
from .interface import evaluating as evaluating, sees_future as sees_future
from .loss import (
    MOST_LOGITS as MOST_LOGITS,
    cross_entropy_sum as cross_entropy_sum,
    nats_and_state as nats_and_state,
    next_token_nats as next_token_nats,
)
from .parallel import (
    ParallelModel as ParallelModel,
    ParallelName as ParallelName,
    SharedModel as SharedModel,
    checkpoint_activations as checkpoint_activations,
    like as like,
    no_layers as no_layers,
    parallel_problem as parallel_problem,
    whole_tensor as whole_tensor,
)
from .products import (
    WORTH_SAYING as WORTH_SAYING,
    bfloat16_share as bfloat16_share,
    choose_once as choose_once,
    choose_products as choose_products,
    decided as decided,
    product_of as product_of,
    resume_with as resume_with,
    tokens_of as tokens_of,
)
from .published import (
    OtherV1Error as OtherV1Error,
    is_published_v8 as is_published_v8,
    load_published as load_published,
    published_state as published_state,
    rename_published as rename_published,
)
from .published_files import (
    DamagedError as DamagedError,
    is_safetensors as is_safetensors,
    no_weights as no_weights,
    published_tensors as published_tensors,
    read_content as read_content,
    read_published as read_published,
    tensors_by_place as tensors_by_place,
)
from .samout import SamOut as SamOut
from .state import (
    compact_state as compact_state,
    held_bytes as held_bytes,
    join_states as join_states,
    map_state as map_state,
    repeat_state as repeat_state,
    state_bytes as state_bytes,
    take_sequences as take_sequences,
)
