"""Entry point of `tiered-emb`: finds the command, and turns a user's mistake into one line.

Exit status: 0 done, 1 the command found a difference or fault it was asked to look for, 2 bad
input, 130 interrupted. A command is a module with ``SUMMARY``, ``add_arguments(parser)`` and
``run(args) -> status``; it is imported only when it is called for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from tiered_emb.data.errors import DataError

COMMANDS = {
    "train": "tiered_emb.cli.train",
    "inspect": "tiered_emb.cli.inspect",
    "verify": "tiered_emb.cli.verify",
    "export": "tiered_emb.cli.export",
}


class UsageError(DataError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = arguments[0] if arguments else ""
    try:
        if name not in COMMANDS:
            return _no_command(name)
        command = importlib.import_module(COMMANDS[name])
        parser = _Parser(
            prog=f"tiered-emb {name}",
            description=command.SUMMARY,
            formatter_class=_help_format,
            allow_abbrev=False,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        command.add_arguments(parser)
        return int(command.run(parser.parse_args(arguments[1:])))
    except (DataError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"tiered-emb {name}: error: {one_line(error)}".replace("  ", " "), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=88)


def _no_command(name: str) -> int:
    if name in ("-h", "--help", ""):
        print(_usage(), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    raise UsageError(f"no command {name!r}; there is: {', '.join(COMMANDS)}")


def _usage() -> str:
    lines = ["usage: tiered-emb COMMAND [OPTIONS]", ""]
    for name, module in COMMANDS.items():
        lines.append(f"  {name:10} {importlib.import_module(module).SUMMARY}")
    lines += ["", "example: tiered-emb train movielens-100k --dram 10% --peer"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
