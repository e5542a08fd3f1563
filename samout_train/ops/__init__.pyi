from .cross_entropy import nats_and_errors as nats_and_errors
from .kernels import (
    Kernels as Kernels,
    fused_problem as fused_problem,
    is_fused as is_fused,
    only_torch as only_torch,
    reference_kernels as reference_kernels,
    use_kernels as use_kernels,
)
from .linear import (
    Products as Products,
    add_product as add_product,
    chosen_products as chosen_products,
    has_onednn as has_onednn,
    is_decided as is_decided,
    linear_into as linear_into,
    many_rows as many_rows,
    use_products as use_products,
)
from .linear.cpu import few_rows as few_rows
from .max_scan.reference import num_streams as num_streams
