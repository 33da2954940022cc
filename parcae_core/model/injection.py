"""How the looped state h meets the prelude's output e at the start of each loop step.

Every injection splits into `drive(e)`, which does not change over the loop and is computed once
per forward, and `carry(h, drive)`, the only part that runs in every step. `carry_normed` is the
carry and, in the same pass, the norm that the core's first block begins with.
S state width, D model width. Source: Parcae (arXiv:2604.12946), "Architecture".
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parcae_core.config import ModelConfig
from parcae_core.kernels.dispatch import Impl, product_dtype
from parcae_core.kernels.loop_boundary import loop_boundary
from parcae_core.kernels.residual_norm import residual_norm
from parcae_core.kernels.rms_norm import RMSNorm
from parcae_core.model.initial import identity_or_orthogonal_, orthogonal_

INITIAL_DECAY = math.sqrt(1 / 5)
# Beyond these the parameters saturate: A_bar = exp(-rate) stays strictly inside (0, 1) in float32
# and no infinity arises whose gradient, times zero, would be NaN.
_LOG_BOUND = 40.0
_RATE_BOUNDS = (1e-6, 80.0)


class DiagonalInjection(nn.Module):
    """A_bar * h + B_bar e with A_bar = exp(dt A), A = -exp(a_log), dt = softplus(dt_bias).

    B_bar is dt * B (Euler, the paper's) or (exp(dt A) - 1) / A * B (exact zero-order hold).
    A_bar lies strictly between 0 and 1 for any parameter values, so the carry is a contraction.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        s, d = config.state_width, config.d_model
        self.exact_hold = config.injection == "diagonal-zoh"
        self.a_log = nn.Parameter(torch.empty(s))
        self.dt_bias = nn.Parameter(torch.empty(s))
        self.B = nn.Parameter(torch.empty(s, d))

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator) -> None:
        self.a_log.zero_()
        dt = -math.log(INITIAL_DECAY)
        self.dt_bias.fill_(math.log(math.expm1(dt)))
        identity_or_orthogonal_(self.B, generator)

    def dt_and_rate(self) -> tuple[Tensor, Tensor]:
        """Step dt and decay rate dt * exp(a_log), both (S,), in float32 or better."""
        wide = torch.float64 if self.a_log.dtype == torch.float64 else torch.float32
        dt = F.softplus(self.dt_bias.to(wide).clamp(min=-_LOG_BOUND, max=math.exp(_LOG_BOUND)))
        rate = dt * self.a_log.to(wide).clamp(-_LOG_BOUND, _LOG_BOUND).exp()
        return dt, rate.clamp(*_RATE_BOUNDS)

    def a_bar(self) -> Tensor:
        """The carry's diagonal, (S,), strictly inside (0, 1)."""
        return torch.exp(-self.dt_and_rate()[1])

    def drive(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """What the loop reuses: (A_bar (S,), B_bar e (B, T, S))."""
        dt, rate = self.dt_and_rate()
        gain = dt * (-torch.expm1(-rate) / rate) if self.exact_hold else dt
        return torch.exp(-rate), gain * F.linear(e, self.B)

    def carry(self, h: Tensor, drive: tuple[Tensor, Tensor]) -> Tensor:
        a_bar, injected = drive
        return torch.addcmul(injected, a_bar.to(injected.dtype), h.to(injected.dtype))

    def carry_normed(
        self, h: Tensor, drive: tuple[Tensor, Tensor], norm: RMSNorm, impl: Impl
    ) -> tuple[Tensor, Tensor]:
        a_bar, injected = drive
        x, dtype = h.to(injected.dtype), product_dtype(injected)
        return loop_boundary(x, a_bar, injected, norm.weight, norm.eps, dtype=dtype, impl=impl)

    def spectral_radius(self) -> float:
        """Largest |eigenvalue| of the carry; exact, the carry being diagonal."""
        return self.a_bar().max().item()


class AddInjection(nn.Module):
    """h + e; the carry is the identity, marginally stable."""

    def reset_parameters(self, generator: torch.Generator) -> None:
        pass

    def drive(self, e: Tensor) -> Tensor:
        return e

    def own(self, h: Tensor) -> Tensor:
        """The state's part of the sum."""
        return h

    def carry(self, h: Tensor, drive: Tensor) -> Tensor:
        return self.own(h) + drive

    def carry_normed(
        self, h: Tensor, drive: Tensor, norm: RMSNorm, impl: Impl
    ) -> tuple[Tensor, Tensor]:
        dtype = product_dtype(h)
        return residual_norm(self.own(h), drive, norm.weight, norm.eps, dtype=dtype, impl=impl)

    def spectral_radius(self) -> float:
        return 1.0


class ConcatInjection(AddInjection):
    """W [h; e], the RDM/Huginn adapter; nothing bounds its carry, so it can diverge."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.state_width = config.state_width
        self.weight = nn.Parameter(torch.empty(self.state_width, self.state_width + config.d_model))

    def reset_parameters(self, generator: torch.Generator) -> None:
        orthogonal_(self.weight, math.sqrt(2 / (5 * self.state_width)), generator)

    def drive(self, e: Tensor) -> Tensor:
        return F.linear(e, self.weight[:, self.state_width :])

    def own(self, h: Tensor) -> Tensor:
        return F.linear(h, self.weight[:, : self.state_width])

    def spectral_radius(self) -> float:
        """Largest singular value of the carry, an upper bound on its spectral radius."""
        return torch.linalg.matrix_norm(self.weight[:, : self.state_width].float(), ord=2).item()


def build_injection(config: ModelConfig) -> nn.Module:
    if config.injection == "concat":
        return ConcatInjection(config)
    return AddInjection() if config.injection == "add" else DiagonalInjection(config)
