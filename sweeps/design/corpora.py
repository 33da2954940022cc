"""Which text the trials of a spec read, and how much of it there is: to plan with, before it is prepared."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from parcae_core.data.corpus import Source
from parcae_core.data.manifest import Manifest, TokenizerManifest, read_manifest
from parcae_core.data.sources import GeneratedSource, PreparedSource, missing, resolve
from parcae_core.data.tokenizer import TokenizerName, parse_tokenizer
from parcae_core.errors import UserError
from parcae_core.trial import DataConfig
from sweeps.design.designs import cells
from sweeps.design.sections import DataSection
from sweeps.design.spec import SweepSpec

# Ids of a corpus that nobody has read yet; its trials have no ids that could be kept
UNREAD = "unread"
# Bytes of English that an id of a byte-level BPE stands for, by size of the vocabulary; between these,
# linear in log(size). A rule of thumb, good to about a tenth, and said to be assumed wherever it is used
_BYTES_PER_TOKEN = {259: 1.0, 1_024: 2.3, 4_096: 3.2, 32_768: 4.2, 50_257: 4.4, 131_072: 4.8}


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """One corpus of a plan."""

    config: DataConfig
    tokenizer: str | None  # as `prepare` takes it; None: the prepared folder's own
    source: Source | None  # None: it is not there, and the plan assumes it
    manifest: Manifest | None = None  # of a prepared folder

    @property
    def context(self) -> int | None:
        """Tokens of a prepared row."""
        return None if self.manifest is None else self.manifest.row_tokens - 1

    def train_tokens(
        self, context: int, root: Path, given: float | None = None
    ) -> tuple[float | None, str]:
        """Tokens that training draws from before a row comes again, and where the number is from.

        Args:
            root: the folder of prepared folders, whose manifests have counted.
            given: tokens as the user knows them.
        """
        if given is not None:
            return given, "as given by --tokens"
        if isinstance(self.source, GeneratedSource):
            return math.inf, "generated: no row comes twice"
        if self.source is None:
            return None, "unknown until it is there; give --tokens"
        counted = self.manifest or _prepared(root, self.config, context)
        if counted is not None:
            return counted.splits["train"].rows * context, f"counted in {counted.data_id}"
        read = self.source.train_bytes
        size = self.source.total_bytes if read is None else read
        if size is None:
            return None, "unknown until it is prepared; give --tokens"
        ratio = bytes_per_token(self.config.vocab_size)
        what = "its text" if read is not None else "its files"
        if ratio == 1:
            return size, f"one for each byte of {what}"
        return size / ratio, f"assumed: {what} at {ratio:.2g} bytes a token"


def bytes_per_token(vocab_size: int) -> float:
    """What an id of a vocabulary stands for, on average over English text; 1 for bytes."""
    sizes, ratios = np.array(list(_BYTES_PER_TOKEN.items())).T
    return float(np.interp(math.log(vocab_size), np.log(sizes), ratios))


def _prepared(root: Path, config: DataConfig, context: int) -> Manifest | None:
    """The manifest of what an earlier run has made of the corpus, if there is one."""
    for path in root.glob(f"*-{config.tokenizer}-{context + 1}-*/manifest.json"):
        manifest = read_manifest(path.parent)
        found = (manifest.source.fingerprint, manifest.long_documents)
        if found == (config.fingerprint, config.packing):
            return manifest
    return None


Corpora = Mapping[DataSection, Corpus]


def resolve_data(
    spec: SweepSpec, where: str, *, assume: bool = False, folder: Path | None = None
) -> dict[DataSection, Corpus]:
    """Which text and which ids the spec means: reads each corpus, trains nothing.

    Args:
        folder: where paths in the spec start; None: at the folder of the file `where`.
        assume: take a corpus that is not there, or is too large to be read now, for what the spec says
            of it; good enough to count what training costs.

    Raises:
        UserError: if a corpus or a tokenizer cannot be had.
    """
    folder = folder or Path(where).parent
    sections = dict.fromkeys(cell.data or spec.data for cell in cells(spec, where))
    return {section: _resolve(section, where, folder, assume) for section in sections}


def _resolve(section: DataSection, where: str, folder: Path, assume: bool) -> Corpus:
    try:
        place = section.place(folder)
        if assume and missing(place):
            return Corpus(
                config=_config(section.corpus, UNREAD, parse_tokenizer(section.tokenizer)),
                tokenizer=section.tokenizer,
                source=None,
            )
        source = resolve(place, val_share=section.val_share)
        if isinstance(source, PreparedSource):
            return _as_prepared(section, source)
        tokenizer = parse_tokenizer(section.tokenizer, source.alphabet)
        fingerprint = UNREAD if assume and not source.is_quick else source.fingerprint
    except ValueError as error:
        raise UserError(f"{where}: data: {error}") from error
    name = section.corpus if source.alphabet is None else source.name
    return Corpus(
        config=_config(name, fingerprint, tokenizer), tokenizer=section.tokenizer, source=source
    )


def _config(
    corpus: str, fingerprint: str, tokenizer: TokenizerName | TokenizerManifest, **packing: str
) -> DataConfig:
    return DataConfig(
        corpus=corpus,
        fingerprint=fingerprint,
        tokenizer=tokenizer.name,  # a tokenizer.json counts by its content, not by its path
        vocab_size=tokenizer.vocab_size,
        **packing,
    )


def _as_prepared(section: DataSection, source: PreparedSource) -> Corpus:
    """A folder that `parcae data prepare` wrote knows its tokenizer."""
    manifest = source.manifest
    has = manifest.tokenizer
    if "tokenizer" in section.model_fields_set:
        asked = parse_tokenizer(section.tokenizer, source.alphabet).name
        if asked != has.name:
            raise UserError(
                f"{section.corpus} was prepared with tokenizer {has.name!r}, and the spec says "
                f"{section.tokenizer!r}; leave tokenizer out, or prepare {manifest.source.name} again with "
                f"`parcae data prepare ... --tokenizer {section.tokenizer}`."
            )
    name = section.corpus if source.alphabet is None else source.name
    return Corpus(
        config=_config(name, source.fingerprint, has, packing=manifest.long_documents),
        tokenizer=None,
        source=source,
        manifest=manifest,
    )
