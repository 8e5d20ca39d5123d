"""The two ways a command ends badly. Each message is one line: what is wrong, and what to do."""

import difflib
from collections.abc import Iterable


class CmbenchError(Exception):
    """Base of the errors that a user is meant to read; the command line prints them without a traceback."""

    exit_code = 1


class UsageError(CmbenchError):
    """The command was asked for something that does not exist or makes no sense (exit code 2)."""

    exit_code = 2


class WorkError(CmbenchError):
    """The work itself failed: a diverged training, a damaged file, a download that did not arrive (exit code 1)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not among ``known``, with the nearest known one as a suggestion."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"did you mean '{close[0]}'?" if close else f"known: {', '.join(names) or 'none'}"
    return UsageError(f"unknown {kind} '{name}': {hint}")
