"""How fast a corpus is prepared, per core: the tokenizers alone, then the whole preparation.

    python -m benchmarks.data_speed [CORPUS] [--tokenizer bpe-32768] [--context 2048] [--repeats 3]

Every rate is MB of UTF-8 text per second of CPU time on one thread (wall time would measure who else
uses the machine; for the whole preparation it is printed beside). The ids of our encoder are compared with
those of the `tokenizers` library before anything is timed. Rows go to results/data_speed.csv with
--record. The target is 8 MB/s per core at a vocabulary of 32,768.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from tokenizers import Tokenizer as HfTokenizer

from benchmarks.common import append_rows, provenance, quantiles
from parcae_core.data.bpe import train_bpe
from parcae_core.data.corpus import Source
from parcae_core.data.manifest import read_manifest
from parcae_core.data.prepare import prepare
from parcae_core.data.sources import resolve
from parcae_core.data.tokenizer import ByteTokenizer, Tokenizer, parse_tokenizer

CHECKED_BYTES = 2_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="?", default="python-stdlib")
    parser.add_argument("--tokenizer", default="bpe-32768")
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    options = parser.parse_args()

    source = resolve(options.corpus)
    texts = list(source.documents("train"))
    n_bytes = sum(len(text.encode()) for text in texts)
    print(f"{source.name}: {len(texts)} train documents, {n_bytes / 1e6:.1f} MB")

    began = time.process_time()
    vocab_size = parse_tokenizer(options.tokenizer).vocab_size
    ours = ByteTokenizer() if options.tokenizer == "bytes" else train_bpe(texts, vocab_size)
    train_s = time.process_time() - began
    print(f"train {options.tokenizer}: {train_s:.1f} s of CPU")

    cases: dict[str, Callable[[], object]] = {
        "encode": lambda: [ours.encode(text) for text in texts]
    }
    if json_text := ours.to_json():
        hf = HfTokenizer.from_str(json_text)
        compare(ours, hf, texts)
        cases["encode, tokenizers library"] = lambda: [hf.encode(text).ids for text in texts]
    rates = {name: rate(case, n_bytes, options.repeats) for name, case in cases.items()}
    rates["prepare"], cropped = whole(source, options.tokenizer, options.context, options.repeats)

    rows = []
    for name, (median, low, high) in rates.items():
        print(f"{name:<28}{median:8.2f} MB per CPU second  [{low:.2f}, {high:.2f}]")
        rows.append(
            {
                "case": name,
                "corpus": source.name,
                "text_mb": round(n_bytes / 1e6, 1),
                "tokenizer": options.tokenizer,
                "context": options.context,
                "mb_per_cpu_s": round(median, 2),
                "q20": round(low, 2),
                "q80": round(high, 2),
                "train_tokenizer_cpu_s": round(train_s, 1),
                "cropped_share": round(cropped, 5),
                "load_1min": round(os.getloadavg()[0], 1),
                **provenance(),
            }
        )
    print(f"cropped: {cropped:.3%} of the tokens at context {options.context}")
    if options.record:
        print(append_rows("data_speed", rows))


def compare(ours: Tokenizer, hf: HfTokenizer, texts: list[str]) -> None:
    """Refuse to time an encoder that gives other ids."""
    seen = 0
    for number, text in enumerate(texts):
        if hf.encode(text).ids != ours.encode(text).tolist():
            raise SystemExit(f"document {number}: ids differ from the tokenizers library's")
        seen += len(text.encode())
        if seen > CHECKED_BYTES:
            break
    print(f"ids equal to the tokenizers library's on {seen / 1e6:.1f} MB")


def rate(case: Callable[[], object], n_bytes: int, repeats: int) -> tuple[float, float, float]:
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        case()
        seconds.append(time.process_time() - began)
    return quantiles([n_bytes / s / 1e6 for s in seconds])


def whole(
    source: Source, tokenizer: str, context: int, repeats: int
) -> tuple[tuple[float, float, float], float]:
    """Reading, tokenising, packing, hashing and writing; the tokenizer is given, not trained."""
    with tempfile.TemporaryDirectory() as folder:
        first = prepare(source, tokenizer, context + 1, Path(folder) / "first", workers=1)
        manifest = read_manifest(first)
        given = str(first / "tokenizer.json") if tokenizer != "bytes" else tokenizer
        n_bytes = sum(s.text_bytes for s in manifest.splits.values())
        seconds = []
        for number in range(repeats):
            began, wall = time.process_time(), time.perf_counter()
            prepare(source, given, context + 1, Path(folder) / str(number), workers=1)
            seconds.append(time.process_time() - began)
            wall = time.perf_counter() - wall
            print(f"prepare: {seconds[-1]:.2f} s of CPU, {wall:.2f} s of wall, one thread")
    return quantiles([n_bytes / s / 1e6 for s in seconds]), manifest.splits["train"].cropped_share


if __name__ == "__main__":
    main()
