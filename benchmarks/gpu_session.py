"""Everything that needs a card, in one command, in the order of what it is worth.

    python -m benchmarks.gpu_session --out DIR --seconds 560     what fits into so much time
    python -m benchmarks.gpu_session --out DIR --resume --seconds 280    goes on with what is not done
    python -m benchmarks.gpu_session --out DIR --rehearse    all of it on a CPU, tiny, in minutes
    python -m benchmarks.gpu_session --collect DIR           at home: rows to benchmarks/results, the
                                                             law's trials to runs/gpu-law

Each stage is a process with a time box of its own, and begins if its box fits into what is left. One that
fails or runs over is a row of state.json with its last words, and the next one begins. Nothing here
imports ray or pydantic; without .git the commit comes from PARCAE_COMMIT. What comes back is at most 8 files: state.json, log.txt, probe.json,
speed.csv, ops.csv, packing.csv, profile.txt, law.tar.xz.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import tarfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks import forked
from benchmarks.forked import ROOT

MAX_FILES, MAX_BYTES = 8, 16 << 20
REHEARSED_BOX = 5  # times the box: a CPU that others use as well
NO_TESTS = 5  # pytest's status where none was selected, as on a CPU
TESTS = [f"tests/parcae_core/{room}" for room in ("kernels", "model", "training")]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One process of the session."""

    name: str
    box_s: float
    command: Sequence[str]  # a module with a `main`, and its arguments
    accepted: tuple[int, ...] = (0,)
    least_s: float | None = None  # takes less than its box where less is left, down to this


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
    budgets=(1e8, 2e8, 1e14), means=(1, 2, 4), law_s=180.0, rate_s=1.0, loops=4, n_sequences=4,
)  # fmt: skip


def stages(s: Sizes, out: Path) -> list[Stage]:
    """The session, in order."""
    length = [] if s.context is None else ["--seq-len", str(s.context)]
    rows = ["--results", str(out), "--steps", str(s.steps), *length]

    def speed(name: str, box_s: float, preset: str, batch: int, *more: str) -> Stage:
        command = ["benchmarks.speed", "--preset", preset, "--batch", str(batch), *rows, *more]
        return Stage(name=name, box_s=box_s, command=command)

    def step(name: str, box_s: float, variant: str, *more: str) -> Stage:
        what = ["--what", "step", "--variants", variant, *more]
        return speed(name, box_s, s.large, s.batch, *what)

    def own(name: str, box_s: float, least_s: float | None = None) -> Stage:
        command = ["benchmarks.gpu_session", "--out", str(out), "--stage", name]
        return Stage(name=name, box_s=box_s, command=command, least_s=least_s)

    small = ["--preset", s.small, "--batch", str(s.small_batch)]
    tests = ["pytest", "-q", "--no-header", "-m", "gpu", "-p", "no:cacheprovider", *TESTS]
    profile = ["benchmarks.profile_step", "--preset", s.large, "--batch", str(s.batch), *length]
    # a step of the small preset with its optimiser: what `parcae plan` reads rates from
    small_step = ["benchmarks.speed", *small, "--results", str(out), "--steps", str(s.steps)]
    small_step += ["--seq-len", str(s.small_context), "--what", "optimizer", "--variants"]
    return [
        own("probe", 40),
        Stage(name="tests", box_s=120, command=tests, accepted=(0, NO_TESTS)),
        own("on-off", 60),
        step("step-ours", 80, "ours"),
        step("step-masked-compiled", 120, "masked compiled"),
        step("step-ours-flash", 60, "ours", "--attention", "flash"),
        step("step-ours-apart", 60, "ours apart"),
        Stage(
            name="profile", box_s=60,
            command=[*profile, "--top", "50", "--table", str(out / "profile.txt")],
        ),
        Stage(name="small-eager", box_s=40, command=[*small_step, "ours"]),
        Stage(name="small-replayed", box_s=50, command=[*small_step, "ours replayed"]),
        step("step-replayed", 70, "ours replayed"),
        step("step-compile", 140, "ours compiled"),
        speed(
            "curve", 110, s.large, s.batch, "--what", "curve", "--curve-batch",
            str(s.curve_batch), "--variants", "ours", "masked",
        ),
        Stage(
            name="packing", box_s=240,
            command=[
                "benchmarks.packing", *small, "--context", str(s.small_context), "--steps",
                str(s.packed_steps), "--concurrent", *map(str, s.concurrent), "--cpus", str(s.cpus),
                "--corpus", "state-reveals", "--data-root", str(out / "work" / "data"),
                "--results", str(out),
            ],
        ),
        own("law", s.law_s + 30, 150),
        step("step-eager", 60, "eager"),
        speed("ops", 120, s.large, s.batch, "--what", "ops"),
        speed("larger", 80, s.larger, s.larger_batch, "--what", "step", "--variants", "ours"),
    ]  # fmt: skip


def run_stage(name: str, s: Sizes, out: Path, box_s: float) -> None:
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
            batch=s.small_batch, budgets=list(s.budgets), means=list(s.means), seconds=box_s - 30,
            rate_s=s.rate_s, loops=s.loops, n_sequences=s.n_sequences, threads=s.cpus,
        )  # fmt: skip
    else:
        raise SystemExit(f"--stage {name}: no such stage of this module")


def run(wanted: Sequence[Stage], out: Path, *, seconds: float = math.inf, longer: int = 1) -> bool:
    """Run the stages that are not done and whose box fits into the seconds left.

    Args:
        longer: times each box.

    Returns:
        Whether all are done in the end.
    """
    out.mkdir(parents=True, exist_ok=True)
    state, began = read_state(out), time.monotonic()
    for stage in wanted:
        if state.get(stage.name, {}).get("status") == "done":
            continue
        left = seconds - (time.monotonic() - began)
        if left < longer * (stage.least_s or stage.box_s):
            print(f"{stage.name:22s} waits: {left:.0f} s are left", flush=True)
            continue
        state[stage.name] = row = _run_one(stage, out, min(stage.box_s * longer, left))
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


def _run_one(stage: Stage, out: Path, box_s: float) -> dict:
    began = time.monotonic()
    module, *arguments = stage.command
    if stage.least_s is not None:
        arguments += ["--seconds", str(box_s)]
    log = out / "log.txt"
    with log.open("a", encoding="utf-8") as file:
        file.write(f"\n==== {stage.name}: {module} {' '.join(arguments)}\n")
    start = log.stat().st_size
    process = forked.start(module, arguments, log, leads=True)
    process.join(box_s)
    code = process.exitcode
    status = "timed out" if code is None else "done" if code in stage.accepted else "failed"
    forked.end(process)
    with log.open("rb") as file:
        file.seek(start)
        said = file.read().decode(errors="replace").strip().splitlines()[-12:]
    seconds = round(time.monotonic() - began, 1)
    return {"status": status, "code": code, "seconds": seconds, "box_s": box_s, "said": said}


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
    parser.add_argument("--seconds", type=float, help="of this call (default: no limit)")
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
        sizes = Sizes(**json.loads(sizes_file.read_text()))
        return run_stage(args.stage, sizes, args.out.resolve(), args.seconds or math.inf)
    sizes, out = REHEARSAL if args.rehearse else Sizes(), args.out.resolve()
    if read_state(out) and not (args.resume or args.only):
        raise SystemExit(f"{out}: holds a session already; add --resume to go on with it")
    sizes_file.parent.mkdir(parents=True, exist_ok=True)
    sizes_file.write_text(json.dumps(asdict(sizes)))
    wanted = [s for s in stages(sizes, out) if not args.only or s.name in args.only]
    longer = 1
    if args.rehearse:  # read where torch is loaded, which is not here
        longer = REHEARSED_BOX
        # a CPU's compiler takes minutes, and what it does is not what is rehearsed; threads that
        # wait for each other stand still on a busy CPU
        os.environ |= {"TORCHDYNAMO_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    done = run(wanted, out, seconds=args.seconds or math.inf, longer=longer)
    for path in what_comes_back(out):
        print(f"{path.stat().st_size:>10,} bytes  {path.name}")
    if not done:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
