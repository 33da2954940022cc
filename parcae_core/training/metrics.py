"""metrics.jsonl: one JSON object per logged step, each step once however often a run is resumed.

Keys, as W&B shows them (group/name_unit):
    step                        updates made
    n_tokens                    trained so far
    train/loss                  nats per token, the batch of this step
    train/grad_norm             before clipping
    val/loss                    nats per token of the validation rows at mean_recurrence loops, where
                                evaluation.every asks for it
    optim/muon_lr  optim/adamw_lr
    depth/mean  depth/max  depth/grad_mean      drawn for this step's batch
    depth/executed_over_ideal   loop steps computed over loop steps drawn, so far
    flops/<rule>                spent so far by each rule, at the expected depths
    flops/sampled               the exact rule with the depths that were drawn
    perf/tokens_per_s  perf/flops_per_s         since the line before; the latter by flops/sampled
    perf/mfu                    flops_per_s over the peak of all whole devices at work, where known
    perf/data_wait_share        of the time since the line before
    perf/wall_s                 in the training loop, all attempts
    data/epoch                  0-based epoch of the training rows
    stability/spectral_radius  stability/state_norm  stability/residual_norm    (looped models)
    stability/loop_norm_<i>     state_norm after the i-th loop step that carries gradient, 01, 02, ...
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from parcae_core.errors import UserError
from parcae_core.plain import MAX_INT

log = logging.getLogger(__name__)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, each step once (its last line), in order of steps."""
    by_step = {row["step"]: row for row in parse_lines(path.read_bytes() if path.exists() else b"")}
    return [by_step[step] for step in sorted(by_step)]


def parse_lines(text: bytes) -> list[dict[str, Any]]:
    """The lines in a piece of a metrics.jsonl; what is no line of ours is left out.

    A kill cuts the last line short; a disk can hold anything.
    """
    rows = []
    for line in text.split(b"\n"):
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and type(row.get("step")) is int and _is_numbers(row):
                rows.append(row)
    return rows


def _is_numbers(row: dict[str, Any]) -> bool:
    return all(
        v is None or type(v) is float or (type(v) is int and abs(v) <= MAX_INT)
        for v in row.values()
    )


class MetricsLog:
    """Append-only log of one run.

    Args:
        path: the file.
        keep_until: lines of later steps are dropped: they come from an attempt that died after
            its last checkpoint, and those steps will be made, and logged, again.
        every: steps between two lines, to tell a hole at the end; None does not look for one.

    Attributes:
        notes: what was wrong with the file that was there, a sentence each.
    """

    def __init__(self, path: Path, *, keep_until: int, every: int | None = None) -> None:
        self.path = path
        with _readable_error(path):
            raw = path.read_bytes() if path.exists() else b""
        kept = [line for line in read_metrics(path) if line["step"] <= keep_until]
        self.notes = _damage(path, raw, kept, keep_until, every)
        for note in self.notes:
            log.warning("%s", note)
        temporary = path.with_suffix(".tmp")
        with _readable_error(path):
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(temporary, path)
            self._file = path.open("a", buffering=1)  # a line is on its way once it is written

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; what is not finite becomes null, which JSON has a word for.

        Raises:
            UserError: if the disk is full.
        """
        with _readable_error(self.path):
            self._file.write(json.dumps({k: _finite(v) for k, v in line.items()}) + "\n")

    def column(self, name: str) -> tuple[tuple[int, float], ...]:
        """(step, value) of every line that has one."""
        lines = read_metrics(self.path)
        return tuple((x["step"], x[name]) for x in lines if isinstance(x.get(name), float))

    def sync(self) -> None:
        """Flush to the disk: what a checkpoint counts as logged has to outlive the machine."""
        with _readable_error(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with _readable_error(self.path):
            self._file.close()


def _damage(
    path: Path, raw: bytes, kept: list[dict[str, Any]], keep_until: int, every: int | None
) -> tuple[str, ...]:
    notes = []
    lines = [line for line in raw.split(b"\n")[:-1] if line.strip()]  # the last: cut by a kill
    if (n_bad := len(lines) - len(parse_lines(b"\n".join(lines)))) > 0:
        notes.append(f"{path}: {n_bad} lines were no metrics and are cut")
    last = kept[-1]["step"] if kept else 0
    if every is not None and keep_until - last >= max(every, 2):
        notes.append(
            f"{path}: a hole, nothing is known of the steps from {last + 1} to {keep_until}, which the "
            "checkpoint has made"
        )
    return tuple(notes)


class Meter:
    """Rates since the last reading."""

    def __init__(self) -> None:
        self._at = time.perf_counter()
        self._tokens = self._wait_s = self._flops = 0.0

    def add(self, *, tokens: int, flops: float, wait_s: float) -> None:
        self._tokens += tokens
        self._flops += flops
        self._wait_s += wait_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside takes no time."""
        began = time.perf_counter()
        yield
        self._at += time.perf_counter() - began

    def read(self, peak_flops_per_s: float | None) -> dict[str, float]:
        """perf/ metrics of the interval that ends now."""
        now = time.perf_counter()
        seconds = max(now - self._at, 1e-9)
        rates = {
            "perf/tokens_per_s": self._tokens / seconds,
            "perf/flops_per_s": self._flops / seconds,
            "perf/data_wait_share": self._wait_s / seconds,
        }
        if peak_flops_per_s is not None:
            rates["perf/mfu"] = self._flops / seconds / peak_flops_per_s
        self._at = now
        self._tokens = self._wait_s = self._flops = 0.0
        return rates


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def _readable_error(path: Path) -> Iterator[None]:
    """Turn a failed write into a message that names the file."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error}); make room on the disk or choose another folder, "
            "and start the run again: it goes on from its last checkpoint"
        ) from error
