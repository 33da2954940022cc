"""lm-evaluation-harness on a looped model: every number of loops from one pass over the loop.

The harness asks a model for log-likelihoods and for text, and makes metrics of the answers. Asked for the
first number of loops, the adapter computes the log-likelihoods of all of them and remembers them; only
text is generated anew for each.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest.mock import patch

from lm_eval import evaluator
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from analysis.errors import nearest
from parcae_core.checkpoints.load import TrainedModel
from parcae_core.data.tokenizer import Tokenizer
from parcae_core.errors import UserError
from parcae_core.generate import Sampling, continue_ids
from parcae_core.likelihood import Scored, log_likelihoods
from sweeps.scoring.scores import Score, Scores

BOOTSTRAP_DRAWS = 1_000  # of the metrics whose standard error has no formula
_DEFAULT_NEW_TOKENS = 256  # of a task that names no number; the harness's own


class LoopedLM(LM):
    """The model as the harness sees it; `n_loops` says which of `loops` it answers for.

    Every text begins with BOS, as the rows of training do.
    """

    def __init__(self, trained: TrainedModel, tokenizer: Tokenizer, loops: Sequence[int]) -> None:
        super().__init__()
        self.trained, self.text, self.loops = trained, tokenizer, sorted(set(loops))
        self.n_loops = self.loops[0]
        self.context = trained.model.config.context
        self.n_cut = 0  # contexts that did not fit
        self._pairs: dict[tuple[str, str], dict[int, Scored]] = {}
        self._whole: dict[str, dict[int, float]] = {}

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        asked = dict.fromkeys((str(r.args[0]), str(r.args[1])) for r in requests)
        new = [pair for pair in asked if pair not in self._pairs]
        encoded = [self._encode_pair(*pair) for pair in new]
        self.n_cut += sum(len(a) + len(b) > self.context + 1 for a, b in encoded)
        self._pairs.update(zip(new, self._score(encoded), strict=True))
        return [self._pairs[r.args[0], r.args[1]][self.n_loops] for r in requests]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        for text in dict.fromkeys(str(r.args[0]) for r in requests):
            if text in self._whole:
                continue
            windows = get_rolling_token_windows(
                self._encode(text), self.text.bos_id, self.context, context_len=1
            )
            parts = self._score([make_disjoint_window(w) for w in windows])
            self._whole[text] = {t: sum(p[t][0] for p in parts) for t in self.loops}
        return [self._whole[r.args[0]][self.n_loops] for r in requests]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        return [self._generate(str(r.args[0]), dict(r.args[1])) for r in requests]

    def _generate(self, context: str, how: dict[str, Any]) -> str:
        until = how.get("until") or ()
        if how.get("do_sample") or how.get("temperature"):
            raise UserError(
                "a task asks for sampled text, and only the likeliest is generated here; leave it out"
            )
        # room for half a context of prompt at least
        n_new = min(int(how.get("max_gen_toks", _DEFAULT_NEW_TOKENS)), self.context // 2)
        prompt = [self.text.bos_id, *self._encode(context)]
        room = self.context - n_new + 1
        self.n_cut += len(prompt) > room
        return continue_ids(
            self.trained.model,
            self.text,
            prompt[-room:],
            self.n_loops,
            Sampling(n_tokens=n_new, temperature=0),
            self.trained.seed,
            until=(until,) if isinstance(until, str) else tuple(until),
        ).text

    def _score(self, pairs: list[tuple[list[int], list[int]]]) -> list[dict[int, Scored]]:
        return log_likelihoods(self.trained.model, pairs, loops=self.loops, seed=self.trained.seed)

    def _encode(self, text: str) -> list[int]:
        return [int(i) for i in self.text.encode(text)]

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both, split where the context's end; blanks at its end belong to what follows."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._encode(stripped)
        # where a merge reaches across the border so far that nothing is left, each is encoded alone
        after = self._encode(stripped + continuation)[len(before) :] or self._encode(continuation)
        return [self.text.bos_id, *before], after


def score(
    trained: TrainedModel,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    *,
    loops: Sequence[int],
    include: Path | None = None,
    n_shot: int | None = None,
    limit: int | None = None,
) -> tuple[Scores, list[str]]:
    """Score a model on tasks at several numbers of loops.

    Args:
        tasks: names that the harness or `include` knows, or paths of a task's YAML file.
        include: a folder with task files of one's own.
        n_shot: examples in each prompt; None: as the task says.
        limit: documents of each task, the first ones; None: all.

    Returns:
        The scores, and what a reader of them should know.

    Raises:
        UserError: an unknown task, or one whose data cannot be had.
    """
    found = _load_tasks(tasks, include)
    for task in found["tasks"].values():
        if n_shot is not None:
            task.set_config("num_fewshot", n_shot)
    model = LoopedLM(trained, tokenizer, loops)
    by_loops = {}
    for n_loops in model.loops:
        model.n_loops = n_loops
        # the harness would start a process per core to draw a few numbers
        with patch.dict(os.environ, DISABLE_MULTIPROC="1"):
            results = evaluator.evaluate(
                model, found, limit=limit, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False
            )
        by_loops[str(n_loops)] = _scores(results["results"], n_shot, limit)
    notes = []
    if model.n_cut:
        notes.append(
            f"{model.n_cut} prompts were longer than the model's context of {model.context} tokens and "
            "were cut at their beginning"
        )
    step = 0 if trained.step is None else trained.step
    return Scores(by_loops=by_loops, step=step, harness=version("lm_eval")), notes


def _load_tasks(tasks: Sequence[str], include: Path | None) -> dict[str, Any]:
    if include is not None and not include.is_dir():
        raise UserError(f"--include {include}: no such folder; it holds the YAML files of tasks")
    own = TaskManager(include_path=include, include_defaults=False)
    known = {*own.all_tasks, *(t for t in tasks if Path(t).is_file())}
    # the harness brings thousands of task files, which are only read where one of them is named
    manager = own if known.issuperset(tasks) else TaskManager(include_path=include)
    for name in tasks:
        if name not in manager.all_tasks and not Path(name).is_file():
            other = "; name a task's YAML file, or the folder of such files with --include"
            cure = nearest(name, manager.all_tasks) or other
            raise UserError(f"task {name!r}: the harness knows no such task{cure}")
    try:
        return manager.load(list(tasks))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"tasks {', '.join(tasks)}: their data cannot be had ({type(error).__name__}: {reason}); "
            "they need the hub's network once, or data sets already in its cache (HF_HOME); tasks in files "
            "of your own need none"
        ) from error


def _scores(results: dict[str, Any], n_shot: int | None, limit: int | None) -> list[Score]:
    """The harness's {task: {"acc,none": value, "acc_stderr,none": value, ...}} as rows."""
    rows = []
    label = ("" if n_shot is None else f"-{n_shot}shot") + (
        "" if limit is None else f"-first{limit}"
    )
    for task, numbers in results.items():
        for key, value in numbers.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr") or not _is_number(value):
                continue
            stderr = numbers.get(f"{metric}_stderr,{kind}")
            rows.append(
                Score(
                    task=task + label,
                    metric=metric if kind == "none" else f"{metric}-{kind}",
                    value=float(value),
                    stderr=float(stderr) if _is_number(stderr) else None,
                )
            )
    return rows


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
