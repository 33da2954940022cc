"""From records to laws: fits, figures, reports. Needs no GPU and no torch.

from analysis import load, fit, predict, optimal, plot
fit(df, "chinchilla", columns={"N": "params", "D": "tokens", "loss": "loss"}).to_frame()
"""

from importlib import import_module

_NAMES = {  # public name -> (module, its name there); imported when asked for
    "load": ("analysis.api", "load"),
    "fit": ("analysis.api", "fit_source"),
    "predict": ("analysis.api", "predict_source"),
    "optimal": ("analysis.api", "optimal_source"),
    "plot": ("analysis.api", "plot_source"),
    "study": ("analysis.api", "study_source"),
    "compare": ("analysis.comparison", "compare"),
    "InputError": ("analysis.errors", "InputError"),
}
__all__ = list(_NAMES)


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module 'analysis' has no {name!r}; it has {', '.join(_NAMES)}")
    module, own = _NAMES[name]
    return getattr(import_module(module), own)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
