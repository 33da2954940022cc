"""Text after a chosen number of loops, token by token; what was read is kept, not computed again.

Every column of a comparison draws its tokens with the same random numbers, so that two columns differ
by their loops alone. The state's relative change in a loop step, ||h_t - h_(t-1)|| / ||h_t||, says
how far from settled the newest token is; below a bound the remaining steps of that token can be left
out, and later tokens then read its keys and values of the last step made in place of those left out.

B batch (1 here), T tokens read at a time, S state width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from parcae_core.data.tokenizer import Tokenizer
from parcae_core.errors import UserError
from parcae_core.model.layers import KeyValues
from parcae_core.model.parcae import Parcae


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is drawn."""

    n_tokens: int = 64  # at most; the end of a document ends a text earlier
    temperature: float = 0.8  # 0: the likeliest token
    top_p: float = 1.0  # draw among the likeliest tokens that hold this much probability
    seed: int = 0
    stop_below: float | None = None  # leave a token's loop when its state changes by less

    def __post_init__(self) -> None:
        if self.n_tokens < 1:
            raise UserError(f"{self.n_tokens} tokens asked for; give at least 1")
        if not 0 <= self.temperature < np.inf:
            raise UserError(f"the temperature is {self.temperature}; it must be 0 or more")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top-p is {self.top_p}; it must lie in (0, 1]")
        if self.seed < 0:
            raise UserError(f"the seed is {self.seed}; it must be 0 or more")
        if self.stop_below is not None and not 0 < self.stop_below < np.inf:
            raise UserError(
                f"the bound of the state's change is {self.stop_below}; give one above 0"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One column."""

    n_loops: int
    ids: tuple[int, ...]  # drawn, the end of the document left out
    text: str
    ended: bool  # by the end of a document
    loops_used: tuple[int, ...]  # of each token that was drawn
    changes: tuple[float, ...]  # of the state in loop step 1, 2, ..., mean over the drawn tokens

    @property
    def saved(self) -> float:
        """Share of the loop steps left out."""
        return 1 - sum(self.loops_used) / (self.n_loops * len(self.loops_used))


class Decoder:
    """One sequence as a model reads it at `n_loops` loop steps."""

    def __init__(
        self, model: Parcae, n_loops: int, *, seed: int, stop_below: float | None = None
    ) -> None:
        """Args:
        seed: of the initial states, which depend on the position alone.
        stop_below: see `Sampling`; tokens read together are never cut short.

        Raises:
            ValueError: loops below 1, or other than 1 for a Transformer.
        """
        if n_loops < 1 or (model.config.is_transformer and n_loops != 1):
            raise ValueError(f"n_loops is {n_loops}; it must be >= 1, and 1 for a Transformer")
        self.model, self.n_loops, self.stop_below = model, n_loops, stop_below
        self.n_read = 0
        self.changes: list[float] = []  # of the last token read, one for each step made
        self._past: dict[tuple[int, int], KeyValues] = {}  # by (layer, loop step)
        self._start = (
            None
            if model.config.is_transformer
            else model.seeded_state([0], model.config.context, seed=seed)  # (1, context, S)
        )

    @torch.no_grad()
    def read(self, ids: list[int]) -> Tensor:
        """Read the first tokens, or one more; the next token's logits, (V,).

        Raises:
            ValueError: beyond the model's context, or several tokens after the first.
        """
        model, config = self.model, self.model.config
        end = self.n_read + len(ids)
        if not ids or end > config.context or (self.n_read and len(ids) > 1):
            raise ValueError(
                f"{len(ids)} tokens after {self.n_read}; the context is {config.context}, and after the "
                "first ones they are read one by one"
            )
        tokens = torch.tensor([ids], device=model.embedding.weight.device)
        p, q = config.n_prelude, config.n_prelude + config.n_core
        tables = model.value_embeddings
        values = [
            tables[str(i)](tokens) if str(i) in tables else None for i in range(config.n_layers)
        ]
        x = self._through(range(p), model.embedding(tokens), values)
        x = self._through(range(p, q), x, values) if self._start is None else self._loop(x, values)
        x = model.norm_final(self._through(range(q, config.n_layers), x, values))
        self.n_read = end
        return F.linear(x[0, -1], model.head_weight)

    def _loop(self, x: Tensor, values: list[Tensor | None]) -> Tensor:
        """The coda's input, (1, T, D), from the prelude's output."""
        model, config = self.model, self.model.config
        core = range(config.n_prelude, config.n_prelude + config.n_core)
        drive = model.injection.drive(model.norm_prelude(x))
        h = self._start[:, self.n_read : self.n_read + x.shape[1]]
        alone, self.changes = self.n_read > 0, []
        for step in range(1, self.n_loops + 1):
            before, h = h, self._through(core, model.injection.carry(h, drive), values, step)
            moved = torch.linalg.vector_norm(h[0, -1] - before[0, -1])
            self.changes.append((moved / torch.linalg.vector_norm(h[0, -1])).item())
            if alone and self.stop_below is not None and self.changes[-1] < self.stop_below:
                self._stand_in(core, step)
                break
        return model.readout(h) if config.has_readout else h

    def _through(
        self, layers: range, x: Tensor, values: list[Tensor | None], step: int = 0
    ) -> Tensor:
        model = self.model
        blocks = [*model.prelude, *model.core, *model.coda]
        for i in layers:
            rotary = model.core_rotary if step else model.rotary
            past = self._past.setdefault((i, step), KeyValues())
            x = blocks[i](x, rotary, values[i], past)
        return x

    def _stand_in(self, core: range, step: int) -> None:
        """Let the newest token's keys and values of `step` be those of the steps left out."""
        for layer in core:
            last = self._past[layer, step]
            for later in range(step + 1, self.n_loops + 1):
                self._past[layer, later].extend(last.k[:, -1:], last.v[:, -1:])


def sample(
    model: Parcae,
    tokenizer: Tokenizer,
    prompt: str,
    *,
    loops: list[int],
    sampling: Sampling,
    state_seed: int,
) -> list[Sample]:
    """Continue a text at each number of loops.

    Raises:
        UserError: an empty prompt, one that leaves no room in the context, loops that the model has
            not, or weights that give no finite numbers.
    """
    if not prompt:
        raise UserError("the prompt is empty; give the beginning of a text")
    if prompt.encode(errors="replace").decode() != prompt:
        raise UserError("the prompt is not UTF-8 text; give it in that encoding")
    if wrong := [n for n in loops if n < 1 or (model.config.is_transformer and n != 1)]:
        needed = "runs its layers once" if model.config.is_transformer else "needs 1 loop or more"
        raise UserError(f"{wrong[0]} loops asked for; this model {needed}")
    ids = [tokenizer.bos_id, *map(int, tokenizer.encode(prompt))]
    room = model.config.context - len(ids) + 1  # the last token drawn is not read again
    if sampling.n_tokens > room:
        raise UserError(
            f"the prompt has {len(ids)} tokens with the one that begins a text, and "
            f"{sampling.n_tokens} more do not fit into the model's context of {model.config.context}; "
            + (f"ask for {room} tokens or fewer" if room > 0 else "shorten the prompt")
        )
    return [continue_ids(model, tokenizer, ids, n, sampling, state_seed) for n in loops]


def continue_ids(
    model: Parcae,
    tokenizer: Tokenizer,
    prompt: list[int],
    n_loops: int,
    sampling: Sampling,
    state_seed: int,
    until: tuple[str, ...] = (),
) -> Sample:
    """Continue tokens that fit into the context with `sampling.n_tokens` more.

    Args:
        prompt: with the token that begins a text.
        until: the text ends before the first of these that it comes to hold.

    Raises:
        UserError: weights that give no finite numbers.
    """
    decoder = Decoder(model, n_loops, seed=state_seed, stop_below=sampling.stop_below)
    uniform = np.random.default_rng(sampling.seed).random(sampling.n_tokens)
    ends = {i for i in (tokenizer.bos_id, tokenizer.eos_id) if i is not None}
    drawable = tokenizer.token_bytes() > 0
    drawable[list(ends)] = True
    ids: list[int] = []
    changes: list[list[float]] = []
    reading, text = prompt, None
    for u in uniform:
        logits = decoder.read(reading).double().cpu().numpy()[: len(drawable)]
        if not np.isfinite(logits).all():
            raise UserError(
                f"the model has no finite logits after {n_loops} loops; it has diverged"
            )
        changes.append(decoder.changes)
        token = draw(np.where(drawable, logits, -np.inf), u, sampling)
        if token in ends:
            break
        ids.append(token)
        reading = [token]
        if until and (text := _cut(_text(tokenizer, ids), until)) is not None:
            break
    return Sample(
        n_loops=n_loops,
        ids=tuple(ids),
        text=_text(tokenizer, ids) if text is None else text,
        ended=len(ids) < sampling.n_tokens or text is not None,
        loops_used=tuple(len(c) or 1 for c in changes),
        changes=tuple(
            float(np.mean([c[t] for c in changes if len(c) > t]))
            for t in range(max(map(len, changes)))
        ),
    )


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode_bytes(np.array(ids, np.int64)).decode("utf-8", "replace")


def _cut(text: str, until: tuple[str, ...]) -> str | None:
    """The text before the first end in it; None if there is none."""
    places = [text.index(end) for end in until if end in text]
    return text[: min(places)] if places else None


def draw(logits: np.ndarray, u: float, sampling: Sampling) -> int:
    """The token at place u of the distribution's cumulated probability, likeliest first.

    Args:
        logits: (V,); minus infinity for what is never drawn.
        u: in [0, 1).
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")
    with np.errstate(over="ignore"):  # a temperature near 0 leaves the likeliest alone
        scaled = (logits[order] - logits[order[0]]) / sampling.temperature
    cumulated = np.cumsum(np.exp(scaled))
    cumulated /= cumulated[-1]
    n_kept = min(int(np.searchsorted(cumulated, sampling.top_p)) + 1, len(order))
    place = int(np.searchsorted(cumulated[:n_kept], u * cumulated[n_kept - 1], side="right"))
    return int(order[min(place, n_kept - 1)])  # u * p may round up to p
