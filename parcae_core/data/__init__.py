"""Corpora to packed rows of token ids: sources, tokenizers, packing, preparation, reading."""
