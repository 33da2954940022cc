"""The looped transformer: prelude, loop, coda."""
