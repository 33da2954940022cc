"""From records to laws: fits, figures, reports. Needs no GPU and no torch.

from analysis import load, fit, predict, optimal
fit(df, "chinchilla", columns={"N": "params", "D": "tokens", "loss": "loss"}).to_frame()
"""

import sys
from importlib import import_module
from types import ModuleType

_NAMES = {  # public name -> (module, its name there); imported when asked for
    "load": ("analysis.api", "load"),
    "fit": ("analysis.api", "fit_source"),
    "predict": ("analysis.api", "predict_source"),
    "optimal": ("analysis.api", "optimal_source"),
    "study": ("analysis.api", "study_source"),
    "compare": ("analysis.compare", "compare"),
    "InputError": ("analysis.errors", "InputError"),
}
_MODULES = ("predict", "compare")  # modules of these names are the functions too
__all__ = list(_NAMES)


class _Door(ModuleType):
    """A module whose name is a public function's too: once imported it would hide the function."""

    def __call__(self, *args, **kwargs):
        module, own = _NAMES[self.__name__.removeprefix("analysis.")]
        return getattr(import_module(module), own)(*args, **kwargs)


def as_door(module: str) -> None:
    """Let a module of this package be called as the public function of its name."""
    sys.modules[module].__class__ = _Door


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module 'analysis' has no {name!r}; it has {', '.join(_NAMES)}")
    if name in _MODULES:
        return import_module(f"analysis.{name}")
    module, own = _NAMES[name]
    return getattr(import_module(module), own)


def __dir__() -> list[str]:
    return sorted([*globals(), *_NAMES])
