"""Tables that the tests of `analysis` are run on: simulated from a known law, never measured."""

import numpy as np
import pandas as pd
import pytest

N_PARAMS, N_CORE = 144_323_136, 14_159_040  # Parcae 140M, PAPER.md section 1


def flops_per_token(mu):
    """A stand-in for the FLOP rule: affine in mu, as Appendix D is at 140M."""
    return 3.963e8 + 8.179e7 * mu


def simulate_records(
    loss,
    budgets=(1e18, 4e18, 16e18, 64e18),
    recurrences=(2, 4, 6, 8, 10, 12),
    loops=None,
    noise=0.0,
    seed=0,
    sweep="simulated",
):
    """A records table whose losses are `loss(mu, n_tokens, n_loops, n_params_unrolled)`."""
    rng = np.random.default_rng(seed)
    rows = []
    for budget in budgets:
        for mu in recurrences:
            batch = 1000
            steps = round(budget / flops_per_token(mu) / batch)
            tokens = steps * batch
            unrolled = N_PARAMS + (mu - 1) * N_CORE
            shift = np.exp(noise * rng.standard_normal())  # one draw per run, as seeds act
            for n_loops in loops or (mu,):
                value = float(loss(mu, tokens, n_loops, unrolled)) * shift
                rows.append(
                    {
                        "trial_id": f"{budget:.0e}-{mu}",
                        "sweep": sweep,
                        "status": "done",
                        "status_reason": None,
                        "preset": "140m",
                        "architecture": "parcae",
                        "injection": "parcae",
                        "d_model": 768,
                        "n_layers": 6,
                        "n_params": N_PARAMS,
                        "n_params_core": N_CORE,
                        "n_params_unrolled": unrolled,
                        "n_params_once": N_PARAMS - N_CORE,
                        "mean_recurrence": mu,
                        "mean_backprop_depth": -(-mu // 2),
                        "depth_scheme": f"poisson({mu})",
                        "budget_flops": budget,
                        "flops_rule": "paper",
                        "train_flops_paper": tokens * flops_per_token(mu),
                        "train_flops_code": 1.3 * tokens * flops_per_token(mu),
                        "train_flops_exact": 1.1 * tokens * flops_per_token(mu),
                        "n_tokens": tokens,
                        "n_steps": steps,
                        "batch_tokens": batch,
                        "context": 100,
                        "n_loops": n_loops,
                        "val_loss": value,
                        "val_bpb": value / np.log(2) / 4,
                        "val_tokens": 10_000,
                        "seed": 0,
                        "data_seed": 0,
                        "data_fingerprint": "f" * 64,
                        "tokenizer": "bpe-32768",
                        "vocab_size": 32768,
                        "data_epochs": 0.5,
                        "muon_lr": 8e-3,
                        "adamw_lr": 8e-3,
                        "diverged_step": None,
                        "wall_s": 100.0,
                        "tokens_per_s": tokens / 100.0,
                        "device": "simulated",
                        "torch_version": "2.6.0",
                        "git_commit": "0012345",
                        "spec_sha256": "a" * 64,
                    }
                )
    return pd.DataFrame(rows)


def parcae_loss(mu, n_tokens, n_loops, n_unrolled):
    """PAPER.md section 4 at 140M, with a test-time term that has died out at T = mu."""
    floor = 2.662 + 522733.307 * n_unrolled**-0.771 + 25420.102 * n_tokens**-0.525
    return floor + 1.2 * np.exp(-6.0 * n_loops / mu)


@pytest.fixture
def simulate():
    return simulate_records


@pytest.fixture
def records():
    """24 runs, 4 budgets x 6 recurrences, each evaluated at T = mu, no noise."""
    return simulate_records(parcae_loss)


@pytest.fixture
def loop_records():
    """The same runs evaluated at T = 1..24 and a spread between runs."""
    loops = (1, 2, 4, 6, 8, 10, 12, 16, 20, 24)
    return simulate_records(parcae_loss, loops=loops, noise=1e-3)


@pytest.fixture
def paper_loss():
    return parcae_loss
