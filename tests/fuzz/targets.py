"""What is damaged, and the command that then reads it.

`prepare` makes the whole files once; `case` damages copies and returns a command line; `wrong` tells
an output that a command may not print with exit code 0.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st

from tests.fuzz.mutations import as_json, broken, edited

Draw = Any


class Target:
    """The default: nothing that a command prints is wrong."""

    def prepare(self, folder: Path) -> Any:
        raise NotImplementedError

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        raise NotImplementedError

    def wrong(self, out: str) -> bool:
        return False


def json_or_bytes(draw: Draw, path: Path, data: Any) -> None:
    """A damaged JSON file: of other values, or of other bytes; seldom a folder in its place."""
    match draw(st.sampled_from(["values", "values", "values", "bytes", "folder", "other"])):
        case "values":
            path.write_bytes(as_json(edited(draw, data)))
        case "bytes":
            path.write_bytes(broken(draw, json.dumps(data).encode()))
        case "folder":
            path.unlink(missing_ok=True)
            path.mkdir()
        case "other":
            path.write_bytes(
                draw(st.sampled_from([b"", b"[]", b"null", b"\xff\xfe", b"1", b'"a"']))
            )


def fresh(source: Path, folder: Path) -> Path:
    """A copy to be damaged, in place of the last one."""
    target = folder / "case"
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target


def corpus(folder: Path) -> Path:
    made = folder / "text"
    made.mkdir(exist_ok=True)
    for i in range(30):
        lines = (f"line {j} of text {i}: {(i * 7919 + j * 104729) % 9973}" for j in range(12))
        (made / f"{i:02d}.txt").write_text("\n".join(lines))
    return made


class Specs(Target):
    def prepare(self, folder: Path) -> list[dict[str, Any]]:
        from tests.support.tiny import spec_dict

        base = spec_dict(data={"corpus": str(corpus(folder)), "tokenizer": "bytes"})
        rest = {k: v for k, v in base.items() if k not in ("budgets_flops", "mean_recurrence")}
        trial = {"mean_recurrence": 2, "n_tokens": 6_400}
        return [
            base,
            base | {"depth": {"kind": "curriculum", "ramp_share": 0.5}, "mean_recurrence": [4]},
            rest | {"design": "test_time", "n_tokens": 6_400, "mean_recurrence": [1, 2]},
            rest
            | {
                "design": "stability",
                "n_tokens": 6_400,
                "mean_recurrence": 2,
                "learning_rates": [1e-3],
                "variants": {"rdm": {"injection": "concat"}},
            },
            rest | {"design": "grid", "base": trial, "axes": {"optim.muon_lr": [1e-3, 2e-3]}},
            rest | {"design": "list", "trials": [trial], "seeds": [0, 1]},
            base
            | {
                "design": "iso_depth",
                "unrolled_core_layers": 4,
                "widths": [16],
                "head_width": 8,
                "resources": {"cpus": 1, "gpus": 0},
                "data_seed": 1,
                "optim": {"muon_lr": 1e-3, "warmup_steps": 1},
            },
        ]

    def case(self, draw: Draw, prepared: list[dict[str, Any]], folder: Path) -> list[str]:
        import yaml

        path = folder / "spec.yaml"
        data = draw(st.sampled_from(prepared))
        kind = draw(st.sampled_from(["values", "values", "values", "bytes", "tag", "line"]))
        if kind == "values":
            path.write_bytes(as_json(edited(draw, data)))  # JSON is YAML
        elif kind == "bytes":
            path.write_bytes(broken(draw, yaml.safe_dump(data).encode()))
        else:
            lines = yaml.safe_dump(data).splitlines()
            i = draw(st.integers(0, len(lines) - 1))
            if kind == "tag":
                lines[i] = lines[i].partition(":")[0] + ": " + draw(st.sampled_from(TAGS))
            else:
                lines.insert(i, draw(st.sampled_from(LINES)))
            path.write_text("\n".join(lines))
        return ["plan", str(path), "--json", "--out", str(folder / "runs")]


TAGS = (
    "!!timestamp 2024-01-01", "2024-01-01", "!!binary aGk=", "!!set {a, b}", "!!omap [a: 1]",
    '!!python/object/apply:os.system ["touch $CANARY"]', "!!python/name:os.system", "&a [*a]",
    "0o17", "1:30:00", "!!float nan", "!!int x", "!!int '9e9'", "!!bool maybe", "<<: {a: 1}", "- - - -",
    "[" * 3_000, "{" * 200_000, "'" + "x" * 2_000_000 + "'", "1" * 5_000, "1" + "0" * 400, "1e99999",
    "[1e12, 1e13, 1e14]", str(list(range(1, 3_000))), "\t", "|", ">", "!!str", "%", "@", "`", "0x" + "f" * 900,
)  # fmt: skip
LINES = (
    "? [a, b]\n: 1", "---", "...", "%YAML 9.9", "- x", "\ttab: 1", "1: 2", "null: 1", "2024-01-01: 1",
    "? {a: b}\n: c", "name: twice", "<<: {name: x}", "\x07", "a: &x [1]\nb: *x",
)  # fmt: skip


class Data:
    """A prepared folder, and what it was made from."""

    def __init__(self, folder: Path, tokenizer: str = "bytes", context: int = 16) -> None:
        from parcae_core.data.prepare import prepare
        from parcae_core.data.sources import resolve

        self.corpus = corpus(folder)
        made = prepare(resolve(str(self.corpus)), tokenizer, context + 1, folder / "data")
        self.folder = Path(made)


class Tokenizers(Target):
    def prepare(self, folder: Path) -> Any:
        data = Data(folder, "bpe-280")
        ours = json.loads((data.folder / "tokenizer.json").read_text())
        foreign = ours | {
            "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
        }
        return SimpleNamespace(corpus=data.corpus, files=(ours, foreign))

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        path = folder / "tokenizer.json"
        shutil.rmtree(path, ignore_errors=True)
        data = draw(st.sampled_from(prepared.files))
        short = draw(st.booleans())
        if short:  # most of a tokenizer is its vocabulary; what else there is would seldom be hit
            parts = {k: v for k, v in data["model"].items() if k not in ("vocab", "merges")}
            changed = edited(draw, data | {"model": parts})
            if isinstance(changed, dict) and isinstance(changed.get("model"), dict):
                changed["model"] = {**data["model"], **changed["model"]}
            path.write_bytes(as_json(changed))
        else:
            json_or_bytes(draw, path, data)
        shutil.rmtree(folder / "out", ignore_errors=True)
        out = str(folder / "out")
        return ["data", "prepare", str(prepared.corpus), "--tokenizer", str(path), "--out", out]


class Prepared(Target):
    def prepare(self, folder: Path) -> Any:
        data = Data(folder, "bpe-280")
        generated = folder / "generated"
        from parcae_core.data.prepare import prepare
        from parcae_core.data.sources import resolve

        made = prepare(resolve("state-reveals"), "characters", 17, generated)
        model = folder / "model"
        save_native(model, 283)
        return SimpleNamespace(folders=(data.folder, Path(made)), model=model)

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        case = fresh(draw(st.sampled_from(prepared.folders)), folder)
        names = sorted(p.name for p in case.iterdir())
        for name in draw(st.lists(st.sampled_from(names), min_size=1, max_size=2, unique=True)):
            path = case / name
            if name.endswith(".json"):
                json_or_bytes(draw, path, json.loads(path.read_text()))
            elif name.endswith(".npy") and draw(st.booleans()):
                path.write_bytes(npy(draw))
            else:
                path.write_bytes(broken(draw, path.read_bytes()))
                mend_manifest(draw, case)
        if draw(st.booleans()):
            verify = ["--verify"] if draw(st.booleans()) else []
            return ["data", "inspect", str(case), *verify]
        return ["eval", str(prepared.model), "--data", str(case), "--loops", "1-2"]

    def wrong(self, out: str) -> bool:
        return "nan" in out.split("nats/token")[-1] if "nats/token" in out else False


def mend_manifest(draw: Draw, folder: Path) -> None:
    """Whoever changes a shard can change the manifest with it."""
    if not draw(st.booleans()) or not (folder / "manifest.json").is_file():
        return
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        for split in manifest["splits"].values():
            path = folder / split["file"]
            row_bytes = manifest["row_tokens"] * 2
            split["rows"] = path.stat().st_size // row_bytes
            path.write_bytes(path.read_bytes()[: split["rows"] * row_bytes])
            split["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError):
        return


def npy(draw: Draw) -> bytes:
    """A NumPy file whose header says what it likes."""
    shape = draw(
        st.sampled_from(["(10**12,)", "(283,)", "()", "(-1,)", "(2**63, 2**63)", "(283, 0)"])
    )
    kind = draw(
        st.sampled_from(["'<i4'", "'|O'", "'<f8'", "'<U9'", "[('a', '<i4')]", "'|V400000000'"])
    )
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(118) if draw(st.booleans()) else draw(st.binary(max_size=118)).ljust(118)
    body = pickle.dumps(Evil()) if draw(st.booleans()) else bytes(283 * 4)
    return b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header + body


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch $CANARY",)


def save_native(run: Path, vocab_size: int) -> Path:
    """A run's folder with a checkpoint of a tiny model."""
    from parcae_core.checkpoints.native import save_checkpoint
    from parcae_core.model.parcae import build_model
    from tests.support.tiny import DATA, tiny_plan

    trial = tiny_plan().trials[1]
    assert trial.data == DATA
    trial = type(trial)(
        **{
            name: getattr(trial, name)
            for name in trial.__dataclass_fields__
            if not name.startswith("_")
        }
        | {"model": trial.model.replace(vocab_size=max(vocab_size, 264))}
    )
    weights = dict(build_model(trial.model, seed=0).state_dict())
    return save_checkpoint(
        run / "checkpoints",
        trial=trial,
        step=3,
        progress={"n_resumed": 0},
        weights=weights,
        optimizer={"moment": next(iter(weights.values())).clone()},
    )


class Checkpoints(Target):
    def prepare(self, folder: Path) -> Any:
        data = Data(folder)
        save_native(folder / "run", 264)
        return SimpleNamespace(data=data.folder, run=folder / "run")

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        case = fresh(prepared.run, folder)
        [step] = (case / "checkpoints").iterdir()
        index = step / "checkpoint.json"
        body = json.loads(index.read_text())
        name = draw(st.sampled_from(["index", "index", "index", "weights", "weights", "rough"]))
        if name == "rough":
            json_or_bytes(draw, index, body)
        else:
            del body["sha256"]
            if name == "weights":
                file = step / draw(st.sampled_from(sorted(body["files"])))
                file.write_bytes(damaged_tensors(draw, file))
                raw = file.read_bytes()
                body["files"][file.name] = {
                    "sha256": hashlib.sha256(raw).hexdigest(),
                    "bytes": len(raw),
                }
            else:
                body = edited(draw, body)
            sha256 = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
            signed = body | {"sha256": sha256} if isinstance(body, dict) else body
            index.write_bytes(as_json(signed))
        where = draw(st.sampled_from([case, step]))
        return ["eval", str(where), "--data", str(prepared.data), "--loops", "1-2"]

    def wrong(self, out: str) -> bool:
        return "nan" in out


def damaged_tensors(draw: Draw, path: Path) -> bytes:
    import torch
    from safetensors.torch import load_file, save

    if draw(st.booleans()):
        return broken(draw, path.read_bytes())
    tensors = load_file(path)
    name = draw(st.sampled_from(sorted(tensors)))
    match draw(st.sampled_from(["nan", "inf", "huge", "shape", "dtype", "gone", "more"])):
        case "nan":
            tensors[name].view(-1)[0] = float("nan")
        case "inf":
            tensors[name].view(-1)[-1] = float("inf")
        case "huge":
            tensors[name] *= 1e38
        case "shape":
            tensors[name] = tensors[name].view(-1)[:-1].clone()
        case "dtype":
            kind = draw(st.sampled_from([torch.int64, torch.bool, torch.float16, torch.complex64]))
            tensors[name] = tensors[name].to(kind)
        case "gone":
            del tensors[name]
        case "more":
            tensors["more"] = torch.zeros(1)
    return save(tensors)


class Published(Target):
    def prepare(self, folder: Path) -> Any:
        import torch._dynamo  # noqa: F401 - loaded by the first model on "meta", in a minute if busy

        from tests.parcae_core.checkpoints.test_published import settings, tensors

        return SimpleNamespace(
            data=Data(folder, context=12).folder, settings=settings, tensors=tensors
        )

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        import torch

        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        kind = draw(st.sampled_from(["parcae", "gpt"]))
        config = case / "config.json"
        settings = prepared.settings(kind) | {"vocab_size": 264}
        state = prepared.tensors(kind, tied=True)
        what = draw(st.sampled_from(["config", "config", "bytes", "tensor", "pickle"]))
        config.write_text(json.dumps(settings))
        torch.save(state, case / "model.pt")
        if what == "config":
            json_or_bytes(draw, config, settings)
        elif what == "bytes":
            (case / "model.pt").write_bytes(broken(draw, (case / "model.pt").read_bytes()))
        elif what == "tensor":
            name = draw(st.sampled_from(sorted(state)))
            state[name] = draw(st.sampled_from(odd_tensors()))
            torch.save(state, case / "model.pt")
        else:
            evil = {"x": Evil()} if draw(st.booleans()) else Evil()
            if draw(st.booleans()):
                torch.save(
                    evil, case / "model.pt", _use_new_zipfile_serialization=draw(st.booleans())
                )
            else:
                (case / "model.pt").write_bytes(pickle.dumps(evil))
        loops = "1" if kind == "gpt" else "1-2"
        return ["eval", str(case), "--data", str(prepared.data), "--loops", loops]

    def wrong(self, out: str) -> bool:
        return "nan" in out


def odd_tensors() -> list[Any]:
    import torch

    return [
        torch.zeros(1).expand(1 << 30),
        torch.full((64, 64), float("nan")),
        torch.zeros(64, 64, dtype=torch.complex64),
        torch.zeros(64, 64, dtype=torch.bool),
        torch.zeros(()),
        torch.zeros(2, 3, 4),
        torch.eye(4).to_sparse(),
        [1, 2],
        None,
        "text",
        torch.zeros(0),
        torch.zeros(64, 64) + 1e38,
    ]


class Corpora(Target):
    def prepare(self, folder: Path) -> Any:
        import gzip

        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = [p.read_text() for p in sorted(corpus(folder).iterdir())]
        whole = folder / "whole"
        for name in ("jsonl", "gz", "parquet"):
            (whole / name).mkdir(parents=True)
        lines = "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()
        (whole / "jsonl" / "a.jsonl").write_bytes(lines)
        (whole / "gz" / "a.jsonl.gz").write_bytes(gzip.compress(lines))
        pq.write_table(pa.table({"text": texts}), whole / "parquet" / "a.parquet", row_group_size=8)
        shutil.copytree(folder / "text", whole / "text")
        return whole

    def case(self, draw: Draw, prepared: Path, folder: Path) -> list[str]:
        kind = draw(st.sampled_from(sorted(p.name for p in prepared.iterdir())))
        case = fresh(prepared / kind, folder)
        path = draw(st.sampled_from(sorted(case.iterdir())))
        if kind == "jsonl" and draw(st.booleans()):
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            i = draw(st.integers(0, len(rows) - 1))
            lines = [as_json(edited(draw, r) if j == i else r) for j, r in enumerate(rows)]
            path.write_bytes(b"\n".join(lines))
        else:
            path.write_bytes(broken(draw, path.read_bytes()))
        if draw(st.booleans()):
            name = draw(
                st.sampled_from([b"\xff\xfe.txt", b"a\nb.txt", b"-x.jsonl", b".hidden.txt"])
            )
            Path(os.fsdecode(os.fsencode(case) + b"/" + name)).write_bytes(b'{"text": "x"}\n')
        if draw(st.integers(0, 9)) == 0:
            place = draw(
                st.sampled_from(["/proc", "/proc/self", "/sys", "/dev", "/dev/zero", "/dev/null"])
            )
        else:
            place = str(case)
        shutil.rmtree(folder / "out", ignore_errors=True)
        return ["data", "prepare", place, "--context", "16", "--out", str(folder / "out")]


class Tables(Target):
    def prepare(self, folder: Path) -> Any:
        import pandas as pd

        from analysis.table import records
        from analysis.table.load import BUNDLED

        bundled = Path(records.__file__).parents[1] / "bundled"
        frame = pd.read_parquet(bundled / BUNDLED["nano-isoflop"])
        return SimpleNamespace(
            parquet=(bundled / BUNDLED["nano-isoflop"]).read_bytes(),
            csv=frame.to_csv(index=False).encode(),
            points=(bundled / BUNDLED["parcae-140m"]).read_bytes(),
            frame=frame,
        )

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        kind = draw(st.sampled_from(["parquet", "csv", "points", "cell", "cell", "cell"]))
        path = folder / ("table.parquet" if kind == "parquet" else "table.csv")
        if kind == "cell":
            import csv
            import io

            rows = list(csv.reader(io.StringIO(prepared.csv.decode())))
            for _ in range(draw(st.integers(1, 3))):
                i, j = draw(st.integers(0, len(rows) - 1)), draw(st.integers(0, len(rows[0]) - 1))
                rows[i][j] = draw(st.sampled_from(CELLS))
            text = io.StringIO()
            csv.writer(text).writerows(rows)
            path.write_bytes(text.getvalue().encode("utf-8", "surrogatepass"))
        else:
            path.write_bytes(broken(draw, getattr(prepared, kind)))
        return ["fit", str(path), "--law", "recurrence"]


CELLS = (
    "", "nan", "inf", "-inf", "1e400", "-1", "0", "1e300", "9" * 400, "x", "NULL", "1,2", '"', "\0", "\n",
    "1e18", "=cmd()", "🙂", "\ud800", "true", "2024-01-01", "0x10", " 1 ", "1_000", "NaN", "1e-320",
)  # fmt: skip


class Wandb(Target):
    def prepare(self, folder: Path) -> Any:
        from wandb.proto import wandb_internal_pb2 as pb

        from sweeps.records import evaluated, outcome_columns, planned_columns

        plan, store = finished_sweep(folder)
        files = []
        for trial in plan.trials:
            record = pb.Record()
            record.run.run_id, record.run.run_group = trial.trial_id, "tiny"
            item = record.run.config.update.add()
            common = planned_columns(trial) | {"sweep": "tiny"}
            item.key, item.value_json = "record", json.dumps(common)
            end = pb.Record()
            item = end.summary.update.add()
            outcome = outcome_columns(store, trial) | {"evaluation": evaluated(store, trial)}
            item.key, item.value_json = "record", json.dumps(outcome)
            ended = pb.Record()
            ended.exit.exit_code = 0
            files.append([record, end, ended])
        return files

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        case = folder / "case"
        shutil.rmtree(case, ignore_errors=True)
        which = draw(st.integers(0, len(prepared) - 1))
        for i, records in enumerate(prepared):
            run = case / f"offline-run-{i}"
            run.mkdir(parents=True)
            payloads = [r.SerializeToString() for r in records]
            if i == which and draw(st.booleans()):
                payloads[:2] = [hostile_record(draw, r) for r in records[:2]]
            data = log_of(payloads)
            if i == which and draw(st.booleans()):
                data = broken(draw, data)
            (run / f"run-{i}.wandb").write_bytes(data)
        source = f"wandb-files:{case}"
        return ["fit", source, "--law", "recurrence"]


def hostile_record(draw: Draw, record: Any) -> bytes:
    changed = type(record)()
    changed.CopyFrom(record)
    update = (changed.run.config if changed.HasField("run") else changed.summary).update[0]
    data = json.loads(update.value_json)
    update.value_json = as_json(edited(draw, data)).decode("utf-8", "replace")
    if draw(st.booleans()):
        update.nested_key.append(draw(st.sampled_from(["record", "", "a"])))
    payload = changed.SerializeToString()
    return broken(draw, payload) if draw(st.integers(0, 3)) == 0 else payload


def log_of(payloads: list[bytes]) -> bytes:
    """W&B's file format: one whole chunk a record, split at block ends."""
    import struct
    import zlib

    BLOCK, CHUNK = 32_768, 7
    out = bytearray(b":W&B" + struct.pack("<HB", 0xBEE1, 0))
    for payload in payloads:
        rest, first = payload, True
        while True:
            left = BLOCK - len(out) % BLOCK
            if left < CHUNK:
                out += bytes(left)
                left = BLOCK
            part, rest = rest[: left - CHUNK], rest[left - CHUNK :]
            kind = 1 if first and not rest else 2 if first else 3 if rest else 4
            crc = zlib.crc32(bytes([kind]) + part)
            out += struct.pack("<IHB", crc, len(part), kind) + part
            first = False
            if not rest:
                break
    return bytes(out)


def finished_sweep(folder: Path) -> Any:
    from sweeps.reports import StateReport
    from sweeps.store import Store
    from tests.support.tiny import tiny_plan, write_spec
    from tests.sweeps.test_store import good_result

    plan = tiny_plan()
    store = Store(folder / "runs", plan.name)
    store.write_plan(plan, write_spec(folder))
    for trial in plan.trials:
        path = store.folder(trial.trial_id) / "result.json"
        path.write_text(json.dumps(good_result(trial)))
        report = StateReport(state="done", step=trial.n_steps, attempts=1)
        report.write(store.files(trial.trial_id).state)
    return plan, store


def decision(trial_id: str) -> dict[str, Any]:
    """A line of design.jsonl."""
    known = {"target": "mu@1e9", "value": 4.0, "low": 2.0, "high": 8.0, "n_runs": 7, "flops": 1e9}
    of = {"trial_id": trial_id, "mean_recurrence": 2, "budget_flops": 4e8, "seed": 0}
    return {"n": 1, **of, "reason": "replica", "estimate": known}


class Sweeps(Target):
    def prepare(self, folder: Path) -> Any:
        plan, store = finished_sweep(folder)
        return SimpleNamespace(root=store.root, trials=plan.trial_ids)

    def case(self, draw: Draw, prepared: Any, folder: Path) -> list[str]:
        case = fresh(prepared.root, folder)
        trial = draw(st.sampled_from(prepared.trials))
        names = ["sweep.json", *(f"{trial}/{n}.json" for n in ("trial", "state", "result"))]
        for name in draw(
            st.lists(st.sampled_from([*names, "design.jsonl"]), min_size=1, max_size=2, unique=True)
        ):
            path = case / name
            data = json.loads(path.read_text()) if path.exists() else decision(trial)
            json_or_bytes(draw, path, data)
            if name == "design.jsonl" and path.is_file():  # a line without an end is none
                path.write_bytes(path.read_bytes() + b"\n")
        verb = draw(st.sampled_from(["status", "status", "collect", "retry", "fit"]))
        if verb == "fit":
            return ["fit", str(case), "--law", "recurrence"]
        as_json = ["--json"] if verb == "status" and draw(st.booleans()) else []
        return [verb, str(case), *as_json]


TARGETS: dict[str, Target] = {
    "specs": Specs(),
    "checkpoints": Checkpoints(),
    "published": Published(),
    "tokenizers": Tokenizers(),
    "prepared": Prepared(),
    "corpora": Corpora(),
    "tables": Tables(),
    "wandb": Wandb(),
    "sweeps": Sweeps(),
}
