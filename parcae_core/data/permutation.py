"""A permutation of range(n) that is computed point by point, so that no order is ever stored.

An epoch of a large corpus has tens of millions of rows; shuffling an index would cost each process
hundreds of megabytes. The arithmetic is spelled out in integers, so the order never depends on a
library's version.

Source: a four-round Feistel network with cycle walking (Black and Rogaway, "Ciphers with Arbitrary
Finite Domains", CT-RSA 2002); the round function is SplitMix64's finaliser (Steele, Lea and Flood,
"Fast splittable pseudorandom number generators", OOPSLA 2014).
"""

from __future__ import annotations

import hashlib

import numpy as np

ROUNDS = 4


def permute(positions: np.ndarray, n: int, key: str) -> np.ndarray:
    """Where each position goes under the permutation of range(n) named by `key`.

    Args:
        positions: (m,) integers in [0, n).
        key: any text; another key is another permutation.

    Returns:
        (m,) int64 in [0, n); distinct positions go to distinct places.
    """
    half_bits = max((n - 1).bit_length() + 1, 2) // 2
    keys = np.frombuffer(hashlib.sha256(key.encode()).digest(), "<u8")
    values = np.asarray(positions, dtype=np.uint64)
    values = _feistel(values, half_bits, keys)
    # The network permutes [0, 4^half_bits), less than 4 n wide: walk on until back inside.
    while (outside := values >= n).any():
        values[outside] = _feistel(values[outside], half_bits, keys)
    return values.astype(np.int64)


def _feistel(values: np.ndarray, half_bits: int, keys: np.ndarray) -> np.ndarray:
    shift = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> shift, values & mask
    for key in keys[:ROUNDS]:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return left << shift | right


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, modulo 2^64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
