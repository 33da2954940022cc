"""`parcae params`: parameter and FLOP tables of the presets. Light to import."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command(name="params")(params)


def params(
    preset: Annotated[str | None, typer.Argument(help="One preset; all when left out.")] = None,
    mean_recurrence: Annotated[
        list[int] | None,
        typer.Option("--mean-recurrence", "-m", help="mu_rec to count for; may be repeated."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable, on stdout.")] = False,
) -> None:
    """Parameters by component, N(mu) and FLOPs per token of the presets.

    Examples:

        parcae params

        parcae params 140m --mean-recurrence 4 --mean-recurrence 8 --json
    """
    from parcae_core.errors import UserError
    from parcae_core.presets import PRESETS

    if preset is not None and preset not in PRESETS:
        raise UserError(f"params: unknown preset {preset!r}; the presets are {', '.join(PRESETS)}")
    depths = mean_recurrence or [1, 2, 4, 6, 8, 10, 12]
    if min(depths) < 1:
        raise UserError(f"params: --mean-recurrence is {min(depths)}; it must be >= 1")
    table = {name: describe(name, depths) for name in ([preset] if preset else PRESETS)}
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        _print(table)


def describe(preset_name: str, mean_recurrences: list[int]) -> dict[str, Any]:
    """Counts of a preset's Parcae and Transformer, as the JSON of `parcae params` has them."""
    from parcae_core.accounting.flops import FLOPS_RULES, train_flops_per_token
    from parcae_core.accounting.params import count_params
    from parcae_core.config import as_dict
    from parcae_core.depth import PoissonDepth, default_backprop_depth
    from parcae_core.presets import preset

    out: dict[str, Any] = {}
    kinds = (
        ("parcae", "transformer", "rdm")
        if preset_name.startswith("rdm-")
        else ("parcae", "transformer")
    )
    for kind in kinds:
        model = preset(preset_name, **({} if kind == "parcae" else {kind: True}))
        counts = count_params(model)
        out[kind] = {"n_params": counts.total, "components": as_dict(counts)}
        if kind == "transformer":
            out[kind]["train_flops_per_token"] = {
                rule: train_flops_per_token(model, None, model.context, rule).total
                for rule in FLOPS_RULES
            }
            continue
        out[kind]["by_mean_recurrence"] = {}
        for mu in mean_recurrences:
            depth = PoissonDepth(mean_recurrence=mu, mean_backprop_depth=default_backprop_depth(mu))
            out[kind]["by_mean_recurrence"][str(mu)] = {
                "mean_backprop_depth": depth.mean_backprop_depth,
                "mean_depth": depth.mean(),
                "n_params_unrolled": counts.unrolled(mu),
                "train_flops_per_token": {
                    rule: train_flops_per_token(model, depth, model.context, rule).total
                    for rule in FLOPS_RULES
                },
            }
    return out


def _print(table: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for name, both in table.items():
        parcae = both["parcae"]
        counts = Table(title=f"{name}: parameters")
        counts.add_column("component")
        for kind in both:
            counts.add_column(kind, justify="right")
        for component in parcae["components"]:
            counts.add_row(component, *(f"{b['components'][component]:,}" for b in both.values()))
        counts.add_section()
        counts.add_row("total", *(f"{b['n_params']:,}" for b in both.values()))
        console.print(counts)
        flops = Table(title=f"{name}: N(mu) and training MFLOP per token at the preset's context")
        for column in ("mu_rec", "mu_bwd", "N(mu)", "paper", "code", "exact"):
            flops.add_column(column, justify="right")
        for mu, row in parcae["by_mean_recurrence"].items():
            per_rule = (f"{f / 1e6:,.4g}" for f in row["train_flops_per_token"].values())
            flops.add_row(
                mu, str(row["mean_backprop_depth"]), f"{row['n_params_unrolled']:,.0f}", *per_rule
            )
        per_rule = (
            f"{f / 1e6:,.4g}" for f in both["transformer"]["train_flops_per_token"].values()
        )
        flops.add_section()
        flops.add_row("transformer", "", f"{both['transformer']['n_params']:,}", *per_rule)
        console.print(flops)
