"""The command line from inside a test."""

from typing import NamedTuple

import pytest

from cmbench.cli import main


class Result(NamedTuple):
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of an error; fails where there is none, or more than one."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and self.err.splitlines()[-1] == lines[0], self.err
        return lines[0].removeprefix("error: ")


class Commands:
    """Runs ``cmbench`` with words; options for every call stand behind them."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: object) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        out, err = self._capsys.readouterr()
        return Result(int(ended.value.code or 0), out, err)
