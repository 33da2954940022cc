"""`state-reveals`: generated text that demands sequential depth, with a loss that is known.

A row is a walk of one hidden state. States are written A B C ..., actions a b c ...; each action is a
permutation of the states, the same in the whole corpus. The row begins with its state revealed. Then
come a gap of actions and the state that they lead to, and so on until the row is full:

    AcCbdBaDdcabE...        c takes A to C; b then d take C to B; a takes B to D; d c a b take D to E

The length of a gap is heavy-tailed: P(k) ~ k^-tail for k = 1 .. longest_gap. Actions and gaps are noise;
only the state at a reveal can be learned, and it needs the gap's k permutations composed. Each further
loop reaches one action further, and the tail sees to it that there is always more to reach.

Sources of the task: word problems of permutation groups (arXiv:2404.08819, arXiv:2210.10749); as
next-token prediction with state reveals (arXiv:2602.14814); loops on such tasks (arXiv:2502.17416).
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import string
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from parcae_core.errors import UserError
from parcae_core.plain import MAX_INT

NAME = "state-reveals"
CHUNK_ROWS = 4_096  # rows drawn together; part of what a seed means
MAX_EXPONENT = 10  # beyond it the rare gaps and actions have no probability that a float holds
_STATES, _ACTIONS = string.ascii_uppercase, string.ascii_lowercase


@dataclass(frozen=True, kw_only=True, slots=True)
class StateReveals:
    """Parameters of the corpus. How long a row is follows from the context of who reads it."""

    states: int = 5
    actions: int = 4
    zipf: float = 0.0  # P(action i) ~ i^-zipf; 0: equally frequent
    tail: float = 1.5  # P(gap = k) ~ k^-tail
    longest_gap: int = 32
    seed: int = 0  # of the rows
    rules_seed: int = 12345  # of the permutations

    def __post_init__(self) -> None:
        most = min(26, int(np.prod(np.arange(1.0, min(self.states, 5) + 1))) - 1)
        limits: dict[str, tuple[float, float, str]] = {
            "states": (2, 26, "between 2 and 26"),
            "actions": (1, most, f"between 1 and {most}"),
            "zipf": (0, MAX_EXPONENT, f"from 0 to {MAX_EXPONENT}"),
            "tail": (0, MAX_EXPONENT, f"from 0 to {MAX_EXPONENT}"),
            "longest_gap": (1, 1 << 20, f"from 1 to {1 << 20}"),
            "seed": (0, MAX_INT, "from 0 to 2^63 - 1"),
            "rules_seed": (0, MAX_INT, "from 0 to 2^63 - 1"),
        }
        for name, (low, high, needed) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                shown = value if isinstance(value, float) else min(value, 1e300)  # what :g can show
                raise ValueError(f"{NAME}: {name} is {shown:g}; it must be {needed}")

    @property
    def alphabet(self) -> str:
        """The characters of the text, in the order of their ids."""
        return _STATES[: self.states] + _ACTIONS[: self.actions]

    @property
    def label(self) -> str:
        """The corpus's name with the parameters that differ from their defaults."""
        values = ((f, getattr(self, f.name)) for f in fields(self))
        own = [f"{f.name}={value:g}" for f, value in values if value != f.default]
        return NAME + (f"({', '.join(own)})" if own else "")

    @classmethod
    def named(cls, label: str) -> StateReveals:
        """Inverse of `label`: `state-reveals`, or `state-reveals(actions=8, zipf=1)`.

        Raises:
            UserError: for a parameter that does not exist or has no sense.
        """
        inside = re.fullmatch(rf"{NAME}(?:\((.*)\))?", label)
        if inside is None:
            raise UserError(f"corpus {label!r}: needed {NAME} or {NAME}(actions=8, zipf=1)")
        given = [
            part.partition("=") for part in (inside[1] or "").replace(" ", "").split(",") if part
        ]
        return cls.of({name: value for name, _, value in given})

    @classmethod
    def of(cls, params: dict[str, object]) -> StateReveals:
        """From a mapping of parameters, whose numbers may be text.

        Raises:
            UserError: as `named`.
        """
        kinds = {f.name: type(f.default) for f in fields(cls)}
        for name in params:
            if name not in kinds:
                near = difflib.get_close_matches(name, kinds, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise UserError(
                    f"{NAME}: unknown parameter {name!r}{hint} (it has {', '.join(kinds)})"
                )
        try:
            return cls(**{name: kinds[name](value) for name, value in params.items()})
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{NAME}: {str(error)[:200]}") from error

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits that stand for the text: sha256 of what generates it."""
        said = {"corpus": NAME, "chunk_rows": CHUNK_ROWS, "revision": 1, **asdict(self)}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    # ---- the text ------------------------------------------------------------------------------

    def rules(self) -> np.ndarray:
        """(actions, states): where each action takes each state; pairwise different, none idle."""
        rng = np.random.default_rng(self.rules_seed)
        found: dict[tuple[int, ...], None] = {}
        while len(found) < self.actions:
            drawn = tuple(rng.permutation(self.states).tolist())
            if drawn != tuple(range(self.states)):
                found[drawn] = None
        return np.array(list(found))

    def chunk(self, stream: tuple[int, ...], number: int, length: int) -> np.ndarray:
        """(CHUNK_ROWS, length) uint16 ids of consecutive rows, without BOS.

        Args:
            stream: what tells one endless order of rows from another: split and data seed.
            number: of the chunk, from 0.
        """
        rng = np.random.default_rng((self.seed, *stream, number))
        rules = self.rules()
        gap_ends, action_ends = np.cumsum(self.gap_shares()), np.cumsum(self.action_shares())
        ids = np.empty((CHUNK_ROWS, length), np.uint16)
        state = rng.integers(self.states, size=CHUNK_ROWS)
        left = _draw(rng, gap_ends) + 1  # actions until the next reveal
        ids[:, 0] = state
        for t in range(1, length):
            reveal = left == 0
            action = _draw(rng, action_ends)
            ids[:, t] = np.where(reveal, state, self.states + action)
            state = np.where(reveal, state, rules[action, state])
            left = np.where(reveal, _draw(rng, gap_ends) + 1, left - 1)
        return ids

    def gaps(self, rows: np.ndarray) -> np.ndarray:
        """The label of every target of rows: the gap that a revealed state ends, 0 elsewhere.

        Args:
            rows: (n, 1 + length) ids, BOS first.

        Returns:
            (n, length) int64; an action and a row's first state have no label, which is 0.
        """
        targets = rows[:, 1:]
        places = np.broadcast_to(np.arange(targets.shape[1]), targets.shape)
        is_state = targets < self.states
        last = np.maximum.accumulate(np.where(is_state, places, -1), axis=1)
        before = np.concatenate([np.full((len(rows), 1), -1), last[:, :-1]], axis=1)
        return np.where(is_state & (before >= 0), places - before - 1, 0)

    # ---- what is known of its loss -------------------------------------------------------------

    def gap_shares(self) -> np.ndarray:
        """(longest_gap,): P(gap = k), k = 1 ..."""
        return _power_law(self.longest_gap, self.tail)

    def action_shares(self) -> np.ndarray:
        """(actions,): P(action i), in the order of the alphabet."""
        return _power_law(self.actions, self.zipf)

    def hazard(self) -> np.ndarray:
        """(longest_gap + 1,): P(the next character is a state | k actions since the last one)."""
        shares = self.gap_shares()
        return np.concatenate([[0.0], shares / np.cumsum(shares[::-1])[::-1]])

    def floor_by_gap(self) -> dict[int, float]:
        """Nats of a revealed state for who knows it: that the gap ends here remains a surprise."""
        with np.errstate(divide="ignore"):
            nats = -np.log(self.hazard())
        return {k: abs(float(nats[k])) for k in range(1, self.longest_gap + 1)}

    def loss(self, length: int, reach: int | None = None) -> float:
        """Nats per token of a reader who composes up to `reach` actions and guesses beyond.

        Args:
            length: tokens of a row.
            reach: None means any number: the floor, below which no model can go.

        Exact for the floor; a guess is counted as one of all states alike, and may know a little
        more after a short gap.
        """
        reachable = min(self.longest_gap, length) + 1  # a row holds no longer gap
        hazard, shares = self.hazard()[:reachable], self.action_shares()
        action = -float(shares @ np.log(shares))
        going_on = 1 - hazard
        # entropy of "does the gap end here", and what follows it
        nats = _entropy(hazard) + going_on * action
        if reach is not None:
            nats[reach + 1 :] += hazard[reach + 1 :] * np.log(self.states)
        since = np.zeros(reachable)  # P(k actions since the last state), at a position
        since[0], total = 1.0, float(np.log(self.states))  # the first character is a state
        for _ in range(length - 1):
            total += float(since @ nats)
            since = np.concatenate([[since @ hazard], (since * going_on)[:-1]])
        return total / length

    def known(self, length: int) -> dict[str, Any]:
        """Floor and loss by reach, in nats per token, and the floor of a state by its gap."""
        reaches = [
            r for r in (0, 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96) if r < self.longest_gap
        ]
        return {
            "floor": self.loss(length),
            "loss_by_reach": {str(r): self.loss(length, r) for r in reaches},
            "floor_by_label": {str(k): nats for k, nats in self.floor_by_gap().items()},
        }


class StateRevealRows:
    """An endless, never repeating order of rows, indexed like an array; holds one chunk at a time."""

    def __init__(self, corpus: StateReveals, row_tokens: int, bos_id: int, stream: tuple[int, ...]):
        self._corpus, self._row_tokens, self._stream = corpus, row_tokens, stream
        self._bos_id = bos_id
        self._number, self._ids = -1, np.empty((0, 0), np.uint16)

    def __getitem__(self, places: np.ndarray) -> np.ndarray:
        """(n, row_tokens) uint16 of the rows at `places`, (n,) integers >= 0."""
        rows = np.empty((len(places), self._row_tokens), np.uint16)
        rows[:, 0] = self._bos_id
        for number in np.unique(places // CHUNK_ROWS):
            here = places // CHUNK_ROWS == number
            rows[here, 1:] = self._chunk(int(number))[places[here] % CHUNK_ROWS]
        return rows

    def _chunk(self, number: int) -> np.ndarray:
        if number != self._number:
            self._ids = self._corpus.chunk(self._stream, number, self._row_tokens - 1)
            self._number = number
        return self._ids


def _draw(rng: np.random.Generator, ends: np.ndarray) -> np.ndarray:
    """(CHUNK_ROWS,) indices of a distribution given by its cumulative sums."""
    return np.minimum(np.searchsorted(ends, rng.random(CHUNK_ROWS), side="right"), len(ends) - 1)


def _entropy(p: np.ndarray) -> np.ndarray:
    """Of yes or no, in nats; 0 where it is certain."""
    inside = np.clip(p, 1e-300, 1.0), np.clip(1 - p, 1e-300, 1.0)
    return -(p * np.log(inside[0]) + (1 - p) * np.log(inside[1]))


def _power_law(n: int, exponent: float) -> np.ndarray:
    weight = np.arange(1.0, n + 1) ** -exponent
    return weight / weight.sum()
