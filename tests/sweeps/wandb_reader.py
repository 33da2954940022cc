"""Read a W&B 0.31 .wandb file without a server.

7-byte header ":W&B", u16 magic, u8 version; then 32 KiB blocks of chunks: crc32 (little-endian), u16
length, u8 type (1 whole, 2 first, 3 middle, 4 last). Each record is a protobuf of wandb's own.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK = 32_768


def records(path: Path) -> Iterator[bytes]:
    """The records; stops at a tail that a kill cut short."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        crc, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if length == 0 and kind == 0:
            at += left
            continue
        chunk = data[at + 7 : at + 7 + length]
        if len(chunk) < length or zlib.crc32(chunk, zlib.crc32(bytes([kind]))) != crc:
            return
        at += 7 + length
        parts = chunk if kind in (1, 2) else parts + chunk
        if kind in (1, 4):
            yield parts


def read(path: Path) -> dict[str, Any]:
    """{"run", "config", "history", "summary", "exit"} of one run file."""
    from wandb.proto import wandb_internal_pb2 as pb

    out: dict[str, Any] = {"run": {}, "config": {}, "history": [], "summary": {}, "exit": None}
    for raw in records(path):
        record = pb.Record.FromString(raw)
        match record.WhichOneof("record_type"):
            case "run":
                run = record.run
                out["run"] = {"id": run.run_id, "group": run.run_group, "tags": list(run.tags)}
                out["config"] |= {u.key: json.loads(u.value_json) for u in run.config.update}
            case "config":
                out["config"] |= {u.key: json.loads(u.value_json) for u in record.config.update}
            case "history":
                items = record.history.item
                out["history"].append({_key(i): json.loads(i.value_json) for i in items})
            case "summary":
                out["summary"] |= {_key(u): json.loads(u.value_json) for u in record.summary.update}
            case "exit":
                out["exit"] = record.exit.exit_code
    return out


def _key(item: Any) -> str:
    return item.key or "/".join(item.nested_key)
