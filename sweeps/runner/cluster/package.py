"""What `parcae submit` sends to a cluster: the files of a folder, its commit, chosen variables."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from parcae_core.errors import UserError
from sweeps.store import COMMIT_VARIABLE, git_commit

# Patterns as in .gitignore: a leading slash means the top of what is sent, and no other `data`.
# Large, or of this machine only:
_LOCAL = (
    *("/runs", "/data", "/wandb", ".git", ".venv", "*.egg-info"),
    *("__pycache__", ".hypothesis", ".pytest_cache", ".ruff_cache"),
)
# What logs a person in somewhere. Everybody who may submit to a cluster can read what was sent to it.
_PLACES = (
    *(".env", ".env.*", ".envrc", ".netrc", "_netrc", ".git-credentials", ".npmrc", ".pypirc"),
    *(
        ".aws",
        ".azure",
        ".boto",
        ".config",
        ".docker",
        ".gnupg",
        ".huggingface",
        ".kube",
        ".pgpass",
    ),
    *(".ray", ".renviron", ".s3cfg", ".ssh", "kubeconfig*", "*rclone.conf", "id_rsa*", "id_dsa*"),
    *("id_ecdsa*", "id_ed25519*", "*.pem", "*.key", "*.p12", "*.pfx", "*.token", "*.secret"),
    *("token", "tokens", "*[-_]token", "secret", "secrets", "credentials"),
)
# Words of a file's name, whatever its ending but Python's: tokens.json and special_tokens.json are of tokenizers
_WORDS = ("token", "*[-_.]token", "*[-_]key", "*secret*", "*credential*", "*service[-_]account*")


def _in_any_case(pattern: str) -> str:
    """The same as .gitignore's patterns know it, which tell letters of two sizes apart."""
    return re.sub(r"(?<!!)[a-z]", lambda letter: f"[{letter[0]}{letter[0].upper()}]", pattern)


SECRETS = tuple(map(_in_any_case, (*_PLACES, *(f"{word}.[!p]*" for word in _WORDS))))
EXCLUDES = (*_LOCAL, *SECRETS)
MIB = 1 << 20


@dataclass(frozen=True, kw_only=True, slots=True)
class Package:
    """The files that a submission sends, as Ray itself will choose them."""

    folder: Path
    excludes: tuple[str, ...]
    files: tuple[str, ...]  # relative to the folder
    n_bytes: int
    left_out: tuple[str, ...]  # by the patterns of ours and the user's; .gitignore leaves out more

    @property
    def has_code(self) -> bool:
        """Whether the cluster will run the product as it is here, and not its own copy."""
        return "sweeps/store.py" in self.files

    @property
    def commit(self) -> dict[str, str]:
        """The commit as a variable, since .git is not sent; empty where the cluster runs its own
        copy."""
        commit = git_commit(self.folder) if self.has_code else None
        return {COMMIT_VARIABLE: commit} if commit else {}

    @property
    def secrets(self) -> tuple[str, ...]:
        """Of what is left out, what looks like keys and tokens."""
        from ray._private.runtime_env.packaging import _get_excludes

        secret = _get_excludes(self.folder, list(SECRETS))
        return tuple(name for name in self.left_out if secret(self.folder / name))

    def sentence(self) -> str:
        """What is sent and what is not, for the user."""
        plain = [name for name in self.left_out if name not in self.secrets]
        text = f"sends {len(self.files)} files, {self.n_bytes / MIB:.1f} MiB, of {self.folder}"
        if plain:
            text += f"; left out: {_some(plain)}"
        if self.secrets:
            text += f"; kept here as possible secrets: {_some(self.secrets)}"
        return text

    def require_sendable(self) -> None:
        """Refuse what Ray's dashboard would not take.

        Raises:
            UserError: with the size and the largest files.
        """
        from ray._private.ray_constants import DASHBOARD_CLIENT_MAX_SIZE

        if self.n_bytes < DASHBOARD_CLIENT_MAX_SIZE:
            return
        size = {name: (self.folder / name).stat().st_size for name in self.files}
        largest = sorted(size, key=size.__getitem__, reverse=True)[:3]
        named = ", ".join(f"{name} ({size[name] / MIB:.0f} MiB)" for name in largest)
        raise UserError(
            f"{self.folder}: {self.n_bytes / MIB:.0f} MiB would be sent, and Ray takes "
            f"{DASHBOARD_CLIENT_MAX_SIZE / MIB:.0f} MiB; the largest: {named}. Leave files out with "
            "--exclude PATTERN or a .rayignore, or submit from a folder that holds the spec alone."
        )


def package_of(folder: Path, excludes: Sequence[str] = ()) -> Package:
    """What a submission of a folder sends.

    Args:
        excludes: further patterns, as in .gitignore.
    """
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    patterns = (*EXCLUDES, *excludes)
    matches, files, left_out = _get_excludes(folder, list(patterns)), {}, []

    def leave_out(path: Path) -> bool:
        if not matches(path):
            return False
        left_out.append(str(path.relative_to(folder)))
        return True

    def keep(path: Path) -> None:
        if path.is_file():
            files[str(path.relative_to(folder))] = path.stat().st_size

    # Ray's own walk, so that what is said here is what it does
    with_gitignore = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    _dir_travel(folder, [leave_out], keep, with_gitignore, logger=logging.getLogger(__name__))
    return Package(
        folder=folder,
        excludes=patterns,
        files=tuple(sorted(files)),
        n_bytes=sum(files.values()),
        left_out=tuple(sorted(left_out)),
    )


def variables(wanted: Sequence[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that travel with a job.

    Args:
        wanted: NAME, NAME=VALUE, or a pattern such as WANDB_*.

    Raises:
        UserError: for a name that is not set here.
    """
    found: dict[str, str] = {}
    for text in wanted:
        name, has_value, value = text.partition("=")
        if has_value:
            found[name] = value
            continue
        matching = {k: v for k, v in environment.items() if fnmatchcase(k, name)}
        if not matching:
            raise UserError(
                f"--env {text}: no such variable is set here; set it, or say NAME=VALUE."
            )
        found |= matching
    return found


def _some(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
