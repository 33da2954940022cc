"""Muon for the layers' matrices, AdamW for everything else, one update per call.

Muon, for a matrix gradient G:
    M <- beta M + (1 - beta) G                     momentum
    U  = polar((1 - beta) G + beta M)              Nesterov; polar(U S V^T) = U V^T, approximately
    v <- beta2 v + (1 - beta2) mean(U^2)           one number per row, or per column if wider
    U <- U / sqrt(v), rescaled to its former Frobenius norm
    W <- W - eta (U + lambda W [U W >= 0]),        eta = lr sqrt(max(1, rows / cols))
The decay is cautious: it acts only on entries that the update already moves towards zero.

Matrices of one shape are stacked, so that a layer's worth of small products becomes one batched
product: on a CPU with small models the number of calls is what the optimiser costs.

n matrices in a stack, R rows, C columns.
Source: Parcae (arXiv:2604.12946), "Training algorithm"; Jordan et al., Muon (2024); Amsel et al.,
Polar Express (arXiv:2505.16932); Li et al., NorMuon (arXiv:2510.05491); cautious weight decay,
Chen et al. (arXiv:2510.12402); Loshchilov and Hutter, AdamW (arXiv:1711.05101).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from parcae_core.training.schedule import learning_rate_scale, weight_decay_scale
from parcae_core.trial import OptimConfig

Group = Literal["muon", "adamw"]

_LAYER = r"(prelude|core|coda)\.\d+\."
_GROUPS: tuple[tuple[Group, str], ...] = (
    ("muon", _LAYER + r"attn\.(q|k|v|out)\.weight"),
    ("muon", _LAYER + r"mlp\.(up|down|gate)\.weight"),
    ("adamw", r"(embedding|head)\.weight"),
    ("adamw", r"value_embeddings\.\d+\.weight"),
    ("adamw", _LAYER + r"attn\.value_gate\.weight"),
    ("adamw", _LAYER + r"norm_(attn|mlp|after_attn|after_mlp)\.weight"),
    ("adamw", r"norm_(prelude|final)\.weight"),
    ("adamw", r"injection\.(a_log|dt_bias|B)"),
    ("adamw", r"injection\.weight"),  # the W of concatenation; it plays the part of B
    ("adamw", r"readout\.weight"),  # C
)

# Coefficients (a, b, c) of x <- a x + b x^3 + c x^5, each the minimax quintic to 1 on the interval
# its predecessors leave of [1e-3, 1]. Source: Polar Express, table of coefficients; a test derives
# them again.
_POLAR = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
)
# Room for rounding: the first four polynomials are evaluated at x / 1.02, because past their
# interval's upper end they grow without bound.
_POLAR_SAFETY = 1.02
_SECOND_MOMENT_BETA = 0.95
_TINY = 1e-10
_STACK_ELEMENTS = 1 << 26  # 256 MiB of float32 per stack bounds the temporary copies


def assign_groups(names_and_params: Iterable[tuple[str, Tensor]]) -> dict[str, Group]:
    """The optimiser of every parameter, by name.

    Raises:
        ValueError: if a parameter is in no group, or Muon would get one that is not a matrix.
    """
    groups: dict[str, Group] = {}
    for name, param in names_and_params:
        found = [group for group, pattern in _GROUPS if re.fullmatch(pattern, name)]
        if not found:
            raise ValueError(
                f"parameter {name} {tuple(param.shape)} belongs to no optimiser group; "
                "add its pattern to _GROUPS in parcae_core/training/optim.py"
            )
        if found[0] == "muon" and param.ndim != 2:
            raise ValueError(
                f"parameter {name} {tuple(param.shape)} is not a matrix; Muon needs one"
            )
        groups[name] = found[0]
    return groups


def polar_factor(x: Tensor) -> Tensor:
    """Nearest matrices with all singular values 1, approximately; zero stays zero.

    Args:
        x: (n, R, C), in the precision to compute in.

    Returns:
        (n, R, C); singular values above 1e-3 of the Frobenius norm land within 0.2 of 1.

    Source: Polar Express (arXiv:2505.16932), five iterations.
    """
    wide = x.mT if x.shape[-2] > x.shape[-1] else x  # the smaller Gram matrix
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True)
    wide = wide / (norm * _POLAR_SAFETY + 1e-7)
    for i, (a, b, c) in enumerate(_POLAR):
        s = _POLAR_SAFETY if i < len(_POLAR) - 1 else 1.0
        gram = wide @ wide.mT  # (n, r, r), r the shorter side
        gram = torch.baddbmm(gram, gram, gram, beta=b / s**3, alpha=c / s**5)
        wide = torch.baddbmm(wide, gram, wide, beta=a / s)
    return wide.mT if x.shape[-2] > x.shape[-1] else wide


class _Stack:
    """Matrices of one shape and their optimiser state."""

    def __init__(self, members: list[tuple[str, nn.Parameter]]) -> None:
        self.names, self.params = [n for n, _ in members], [p for _, p in members]
        rows, cols = self.params[0].shape
        side = (rows, 1) if rows >= cols else (1, cols)
        new, n = self.params[0].new_zeros, len(members)
        self.momentum = new(n, rows, cols)  # (n, R, C)
        self.second = new(n, *side)  # (n, R, 1) or (n, 1, C), the longer side

    def update(self, *, lr: float, beta: float, weight_decay: float) -> None:
        grads = torch.stack([p.grad for p in self.params])  # (n, R, C)
        params = torch.stack(list(self.params))
        self.momentum.lerp_(grads, 1 - beta)
        ahead = grads.lerp_(self.momentum, beta)
        # bfloat16 is what the GPU is fast in and what the method was designed for
        on_gpu = ahead.is_cuda and ahead.dtype == torch.float32
        u = polar_factor(ahead.bfloat16() if on_gpu else ahead).to(params.dtype)
        u = self._normalised(u)
        rows, cols = params.shape[-2:]
        eta = lr * max(1.0, rows / cols) ** 0.5
        towards_zero = (u * params) >= 0
        params.addcmul_(params, towards_zero.to(params.dtype), value=-eta * weight_decay)
        params.add_(u, alpha=-eta)
        torch._foreach_copy_(self.params, list(params.unbind()))

    def _normalised(self, u: Tensor) -> Tensor:
        """u over the root of its running second moment, at u's own Frobenius norm."""
        along = -1 if self.second.shape[-1] == 1 else -2
        self.second.lerp_(u.square().mean(dim=along, keepdim=True), 1 - _SECOND_MOMENT_BETA)
        scaled = u * self.second.clamp_min(_TINY).rsqrt()
        before = torch.linalg.vector_norm(u, dim=(-2, -1), keepdim=True)
        after = torch.linalg.vector_norm(scaled, dim=(-2, -1), keepdim=True)
        return scaled * (before / after.clamp_min(_TINY))


class _AdamW:
    """Everything that is not Muon's, without decay, and its optimiser state."""

    def __init__(self, named: Mapping[str, nn.Parameter], config: OptimConfig) -> None:
        self.names, self.params, self.config = list(named), list(named.values()), config
        self.means = [torch.zeros_like(p) for p in self.params]
        self.squares = [torch.zeros_like(p) for p in self.params]
        # updates made, scalars in float32 as the fused kernel wants them
        self.counts = [torch.zeros((), device=p.device, dtype=torch.float32) for p in self.params]

    def update(self, *, lr: float) -> None:
        # torch.optim.AdamW would do the same, and import all of torch's compiler to do it: 0.9 s
        # and its memory at the start of every small trial
        adamw(
            self.params,
            [p.grad for p in self.params],
            self.means,
            self.squares,
            [],
            self.counts,
            fused=True,
            amsgrad=False,
            beta1=self.config.adamw_beta1,
            beta2=self.config.adamw_beta2,
            lr=lr,
            weight_decay=0.0,
            eps=self.config.adamw_eps,
            maximize=False,
        )


class Optimizer:
    """Muon and AdamW over one model, driven by the step index.

    Weight decay applies to Muon's matrices only. The state is a dict of named tensors, so that a
    checkpoint needs no pickle.
    """

    def __init__(self, model: nn.Module, config: OptimConfig, *, n_steps: int) -> None:
        self.config, self.n_steps = config, n_steps
        self._named = named = dict(model.named_parameters())
        self.groups = assign_groups(named.items())
        matrices = ((n, p) for n, p in named.items() if self.groups[n] == "muon")
        self._stacks = [_Stack(members) for members in _by_shape(matrices)]
        others = {n: p for n, p in named.items() if self.groups[n] == "adamw"}
        self._adamw = _AdamW(others, config)

    def learning_rates(self, step: int) -> dict[str, float]:
        """Base rates of both groups at update `step`."""
        scale = learning_rate_scale(
            step,
            n_steps=self.n_steps,
            warmup_steps=self.config.warmup_steps,
            cooldown_share=self.config.cooldown_share,
        )
        return {"muon": self.config.muon_lr * scale, "adamw": self.config.adamw_lr * scale}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Make update number `step` (0-based) from the gradients the parameters hold.

        Every parameter must have one; a missing gradient is a bug in the model, not a zero.
        """
        missing = [name for name, param in self._named.items() if param.grad is None]
        assert not missing, f"no gradient for {', '.join(missing)}"
        rates = self.learning_rates(step)
        in_cooldown = self.config.weight_decay_falls == "cooldown"
        decay = self.config.muon_weight_decay * weight_decay_scale(
            step,
            n_steps=self.n_steps,
            cooldown_share=self.config.cooldown_share if in_cooldown else None,
        )
        for stack in self._stacks:
            stack.update(lr=rates["muon"], beta=self.config.muon_momentum, weight_decay=decay)
        self._adamw.update(lr=rates["adamw"])

    def state_tensors(self) -> dict[str, Tensor]:
        """The whole state by name; views, not copies."""
        state = {}
        for stack in self._stacks:
            for i, name in enumerate(stack.names):
                state[f"muon.momentum.{name}"] = stack.momentum[i]
                state[f"muon.second.{name}"] = stack.second[i]
        for i, name in enumerate(self._adamw.names):
            state[f"adamw.mean.{name}"] = self._adamw.means[i]
            state[f"adamw.square.{name}"] = self._adamw.squares[i]
        return state

    @torch.no_grad()
    def load_state_tensors(self, tensors: Mapping[str, Tensor], *, steps_made: int) -> None:
        """Restore what `state_tensors` gave after `steps_made` updates.

        Raises:
            ValueError: if a tensor is missing, unknown or of another shape.
        """
        wanted = {n: tuple(t.shape) for n, t in self.state_tensors().items()}
        found = {n: tuple(t.shape) for n, t in tensors.items()}
        if wanted != found:
            different = sorted(
                n for n in wanted.keys() | found.keys() if wanted.get(n) != found.get(n)
            )
            raise ValueError(
                f"optimiser state: {len(different)} tensors differ from the model's "
                f"({', '.join(different[:3])}, ...); the checkpoint is of another model"
            )
        for name, tensor in self.state_tensors().items():
            tensor.copy_(tensors[name])
        for count in self._adamw.counts:
            count.fill_(steps_made)


def _by_shape(
    named: Iterable[tuple[str, nn.Parameter]],
) -> Iterable[list[tuple[str, nn.Parameter]]]:
    """Members of equal shape together, in lists whose stack stays under the memory bound."""
    shapes: dict[torch.Size, list[tuple[str, nn.Parameter]]] = {}
    for name, param in named:
        shapes.setdefault(param.shape, []).append((name, param))
    for shape, members in shapes.items():
        n = max(1, _STACK_ELEMENTS // shape.numel())
        yield from (members[i : i + n] for i in range(0, len(members), n))
