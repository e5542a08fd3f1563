"""Number the tensors of a kernel of linear attention, as its list of addresses has them."""

Q, K, V, DECAY, STATE, OUT, LAST, BEFORE, SCORES = range(9)
GRAD_OUT, GRAD_LAST, GRAD_Q, GRAD_K, GRAD_V, GRAD_DECAY, GRAD_STATE = range(9, 16)
