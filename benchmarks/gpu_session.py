"""Everything that needs a card, in one command, in the order of what it is worth.

    python -m benchmarks.gpu_session --out DIR --call 1      then --call 2, 3, 4; each under 560 s
    python -m benchmarks.gpu_session --out DIR --resume      goes on with what is not done
    python -m benchmarks.gpu_session --out DIR --rehearse    all of it on a CPU, tiny, in minutes
    python -m benchmarks.gpu_session --collect DIR           at home: rows to benchmarks/results, the
                                                             law's trials to runs/gpu-law

Each stage is a process with a time box of its own. One that fails or runs over is a row of state.json
with its last words, and the next one begins. Nothing here imports ray or pydantic; without .git the
commit comes from PARCAE_COMMIT. What comes back is at most 8 files: state.json, log.txt, probe.json,
speed.csv, ops.csv, packing.csv, profile.txt, law.tar.xz.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
CALL_LIMIT_S = 560  # of one call, in a lease of ten minutes
MAX_FILES, MAX_BYTES = 8, 16 << 20
REHEARSED_BOX = 5  # times the box: a CPU that others use as well
NO_TESTS = 5  # pytest's status where none was selected, as on a CPU
TESTS = [f"tests/parcae_core/{room}" for room in ("kernels", "model", "training")]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the session."""

    name: str
    call: int
    box_s: float
    command: Sequence[str]  # after `python -m`
    accepted: tuple[int, ...] = (0,)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What a session measures with; a rehearsal's is tiny."""

    large: str = "140m"
    larger: str = "370m"
    small: str = "small"
    batch: int = 32
    larger_batch: int = 16
    small_batch: int = 64
    curve_batch: int = 8
    context: int | None = None  # None: the preset's
    small_context: int = 512
    steps: int = 8
    packed_steps: int = 300
    concurrent: tuple[int, ...] = (1, 2, 4, 8)
    cpus: int = 16
    budgets: tuple[float, ...] = (6.4e14, 1.6e15, 4e15, 1e16, 2.5e16)
    means: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12)
    law_s: float = 520.0
    rate_s: float = 60.0
    loops: int = 24
    n_sequences: int = 512


REHEARSAL = Sizes(
    large="nano", larger="nano", small="nano", batch=4, larger_batch=2, small_batch=4, curve_batch=2,
    context=32, small_context=32, steps=2, packed_steps=60, concurrent=(1, 2), cpus=1,
    budgets=(1e8, 2e8, 1e18), means=(1, 2, 4), law_s=180.0, rate_s=3.0, loops=4, n_sequences=4,
)  # fmt: skip


def stages(s: Sizes, out: Path) -> list[Stage]:
    """The session, in order."""
    length = [] if s.context is None else ["--seq-len", str(s.context)]
    rows = ["--results", str(out), "--steps", str(s.steps), *length]

    def speed(name: str, call: int, box_s: float, preset: str, batch: int, *more: str) -> Stage:
        command = ["benchmarks.speed", "--preset", preset, "--batch", str(batch), *rows, *more]
        return Stage(name=name, call=call, box_s=box_s, command=command)

    def step(name: str, call: int, box_s: float, variant: str, *more: str) -> Stage:
        what = ["--what", "step", "--variants", variant, *more]
        return speed(name, call, box_s, s.large, s.batch, *what)

    def own(name: str, call: int, box_s: float) -> Stage:
        command = ["benchmarks.gpu_session", "--out", str(out), "--stage", name]
        return Stage(name=name, call=call, box_s=box_s, command=command)

    small = ["--preset", s.small, "--batch", str(s.small_batch)]
    tests = ["pytest", "-q", "--no-header", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    profile = ["benchmarks.profile_step", "--preset", s.large, "--batch", str(s.batch), *length]
    # a step of the small preset with its optimiser: what `parcae plan` reads rates from
    small_step = ["benchmarks.speed", *small, "--results", str(out), "--steps", str(s.steps)]
    small_step += ["--seq-len", str(s.small_context), "--what", "optimizer", "--variants"]
    return [
        own("probe", 1, 40),
        Stage(name="tests", call=1, box_s=120, command=tests, accepted=(0, NO_TESTS)),
        own("on-off", 1, 60),
        step("step-ours", 1, 80, "ours"),
        step("step-masked-compiled", 1, 120, "masked compiled"),
        step("step-ours-flash", 1, 60, "ours", "--attention", "flash"),
        Stage(
            name="profile", call=1, box_s=60,
            command=[*profile, "--top", "50", "--table", str(out / "profile.txt")],
        ),
        step("step-eager", 2, 60, "eager"),
        step("step-compile", 2, 140, "ours compiled"),
        step("step-replayed", 2, 70, "ours replayed"),
        speed("larger", 2, 80, s.larger, s.larger_batch, "--what", "step", "--variants", "ours"),
        Stage(name="small-eager", call=2, box_s=40, command=[*small_step, "ours"]),
        Stage(name="small-replayed", call=2, box_s=50, command=[*small_step, "ours replayed"]),
        speed(
            "curve", 2, 110, s.large, s.batch, "--what", "curve", "--curve-batch",
            str(s.curve_batch), "--variants", "ours", "masked",
        ),
        speed("ops", 3, 120, s.large, s.batch, "--what", "ops"),
        Stage(
            name="packing", call=3, box_s=400,
            command=[
                "benchmarks.packing", *small, "--context", str(s.small_context), "--steps",
                str(s.packed_steps), "--concurrent", *map(str, s.concurrent), "--cpus", str(s.cpus),
                "--corpus", "state-reveals", "--data-root", str(out / "work" / "data"),
                "--results", str(out),
            ],
        ),
        own("law", 4, s.law_s + 30),
    ]  # fmt: skip


def run_stage(name: str, s: Sizes, out: Path) -> None:
    """A stage that is a function here, in the process that the session started for it."""
    from benchmarks import session_stages as own
    from parcae_core.presets import preset

    shape = preset(s.large)
    context = s.context or shape.context
    if name == "probe":
        own.probe(
            out, heads=shape.n_head, d_head=shape.d_model // shape.n_head, batch=s.batch,
            context=context,
        )  # fmt: skip
    elif name == "on-off":
        own.on_off(out, preset=s.large, context=min(context, 256))
    elif name == "law":
        own.law(
            out, preset=s.small, corpus="state-reveals", context=s.small_context,
            batch=s.small_batch, budgets=list(s.budgets), means=list(s.means), seconds=s.law_s,
            rate_s=s.rate_s, loops=s.loops, n_sequences=s.n_sequences, threads=s.cpus,
        )  # fmt: skip
    else:
        raise SystemExit(f"--stage {name}: no such stage of this module")


def run(wanted: Sequence[Stage], out: Path, *, rehearsed: bool) -> bool:
    """Run stages that are not done; whether all are done in the end."""
    out.mkdir(parents=True, exist_ok=True)
    state = read_state(out)
    env, longer = dict(os.environ), REHEARSED_BOX if rehearsed else 1
    if rehearsed:  # a CPU's compiler takes minutes, and what it does is not what is rehearsed
        env["TORCHDYNAMO_DISABLE"] = "1"
        env["OMP_NUM_THREADS"] = "1"  # threads that wait for each other stand still on a busy CPU
    for stage in wanted:
        if state.get(stage.name, {}).get("status") == "done":
            continue
        state[stage.name] = row = _run_one(stage, out, env, stage.box_s * longer)
        # written after each stage, so that a call that is cut off leaves what it did
        temporary = out / "state.tmp"
        temporary.write_text(json.dumps(state, indent=1) + "\n")
        temporary.replace(out / "state.json")
        print(
            f"{stage.name:22s} {row['status']:9s} {row['seconds']:6.1f} of {row['box_s']:g} s",
            flush=True,
        )
        if row["status"] != "done":
            print("    " + "\n    ".join(row["said"]), flush=True)
    return all(state.get(s.name, {}).get("status") == "done" for s in wanted)


def _run_one(stage: Stage, out: Path, env: dict[str, str], box_s: float) -> dict:
    began = time.monotonic()
    with (out / "log.txt").open("a+", encoding="utf-8") as log:
        log.write(f"\n==== {stage.name}: {' '.join(stage.command)}\n")
        log.flush()
        start = log.tell()
        # a group of its own, so that what it has started ends with it
        process = subprocess.Popen(
            [sys.executable, "-m", *stage.command], cwd=ROOT, env=env, stdout=log,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(box_s)
            status = "done" if code in stage.accepted else "failed"
        except subprocess.TimeoutExpired:
            code, status = None, "timed out"
        finally:
            _end_group(process)
        log.seek(start)
        said = log.read().strip().splitlines()[-12:]
    seconds = round(time.monotonic() - began, 1)
    return {
        "status": status, "code": code, "seconds": seconds, "box_s": box_s,
        "call": stage.call, "said": said,
    }  # fmt: skip


def _end_group(process: subprocess.Popen) -> None:
    import contextlib
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def read_state(out: Path) -> dict[str, dict]:
    path = out / "state.json"
    return json.loads(path.read_text()) if path.exists() else {}


def what_comes_back(out: Path) -> list[Path]:
    """The files at the top of the folder; `work` stays behind.

    Raises:
        SystemExit: if there are more, or larger ones, than a lease returns.
    """
    files = [p for p in sorted(out.iterdir()) if p.is_file()]
    large = [p.name for p in files if p.stat().st_size > MAX_BYTES]
    if len(files) > MAX_FILES or large:
        raise SystemExit(
            f"{out}: {len(files)} files, of which {large} are over 16 MiB; at most {MAX_FILES} come back"
        )
    return files


def collect(out: Path) -> None:
    """Append a session's rows to benchmarks/results and unpack its law, where they can be read."""
    from benchmarks.common import append_rows

    for name in ("speed", "ops", "packing"):
        path = out / f"{name}.csv"
        if path.exists():
            with path.open(newline="") as file:
                print("rows appended to", append_rows(name, list(csv.DictReader(file))))
    if (out / "law.tar.xz").exists():
        with tarfile.open(out / "law.tar.xz") as archive:
            archive.extractall(ROOT / "runs", filter="data")
        print("the law's trials are in runs/gpu-law: parcae fit runs/gpu-law --law recurrence")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="folder for what comes back")
    parser.add_argument("--call", type=int, nargs="+", help="only the stages of these calls")
    parser.add_argument("--only", nargs="+", help="only these stages, by name")
    parser.add_argument("--resume", action="store_true", help="skip what state.json calls done")
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--collect", type=Path, metavar="DIR", help="take a session's results over")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.collect:
        return collect(args.collect)
    if args.out is None:
        parser.error("--out DIR is needed: the folder that comes back")
    # the stages' own processes read the session's sizes where it left them
    sizes_file = args.out / "work" / "sizes.json"
    if args.stage:
        return run_stage(
            args.stage, Sizes(**json.loads(sizes_file.read_text())), args.out.resolve()
        )
    sizes, out = REHEARSAL if args.rehearse else Sizes(), args.out.resolve()
    if read_state(out) and not (args.resume or args.call or args.only):
        raise SystemExit(f"{out}: holds a session already; add --resume to go on with it")
    sizes_file.parent.mkdir(parents=True, exist_ok=True)
    sizes_file.write_text(json.dumps(asdict(sizes)))
    wanted = [
        stage
        for stage in stages(sizes, out)
        if (not args.call or stage.call in args.call) and (not args.only or stage.name in args.only)
    ]
    done = run(wanted, out, rehearsed=args.rehearse)
    for path in what_comes_back(out):
        print(f"{path.stat().st_size:>10,} bytes  {path.name}")
    if not done:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
