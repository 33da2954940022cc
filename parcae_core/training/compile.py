"""torch.compile over a training step that runs in a handful of static shapes.

The step is cut where Python decides: the prelude with all that is computed once, a loop step, the
coda. `advance_static` runs the loop in at most nine shapes, so that a training has at most
`MAX_TRAIN_GRAPHS` graphs, whatever depths are drawn; each size of a batch in the evaluation adds
three. A test counts them. Nothing is marked as dynamic: with static sizes the compiler's code is
faster, and sizes that are equal by chance are not tied. Past its limit torch runs a part eagerly
without a word; here it raises.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from parcae_core.model.loop import N_WIDTHS
from parcae_core.model.parcae import Parcae

# prelude, coda, the gradient's loop step, and one loop step for each number of sequences
MAX_TRAIN_GRAPHS = 3 + N_WIDTHS
_SIZES = 8  # of batches: whole and last portions of the training, of the evaluation, after halvings


def compile_model(model: Parcae, *, backend: str | Callable = "inductor") -> None:
    """torch.compile the parts of a model in place; names and weights stay.

    The model's own kernels stay: the compiler sees them as operators and fuses what is around them.

    Args:
        backend: of torch.compile.
    """
    import torch._dynamo.config as dynamo  # costs a second, which only those who ask should pay

    dynamo.recompile_limit = max(dynamo.recompile_limit, _SIZES * MAX_TRAIN_GRAPHS)
    dynamo.fail_on_recompile_limit_hit = True  # an eager part is not what was asked for
    if model.config.is_transformer:
        parts = ("transformer_states",)
    else:
        parts = ("prepare", "core_step", "read_out")
        model.static_shapes = True
    for name in parts:
        setattr(model, name, torch.compile(getattr(model, name), backend=backend, dynamic=False))
