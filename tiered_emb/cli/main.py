"""Entry point of `tiered-emb`: finds the command, and turns a user's mistake into one line.

Exit status: 0 done, 1 the command found a difference or fault it was asked to look for, 2 bad
input, 130 interrupted. A command is a module with ``SUMMARY``, ``add_arguments(parser)`` and
``run(args) -> status``, or one with ``SUMMARY``, ``EXAMPLE`` and more ``COMMANDS``; it is imported
only when it is called for.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from tiered_emb.data.errors import DataError

COMMANDS = {
    "train": "tiered_emb.cli.train",
    "bench": "tiered_emb.cli.bench",
    "inspect": "tiered_emb.cli.inspect",
    "verify": "tiered_emb.cli.verify",
    "export": "tiered_emb.cli.export",
    "convert-data": "tiered_emb.cli.convert_data",
    "trace": "tiered_emb.cli.trace",
    "tune": "tiered_emb.cli.tune",
}
EXAMPLE = "tiered-emb train movielens-100k --dram 10% --peer"
_PROGRAM = "tiered-emb"


class UsageError(DataError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; gives the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    program = _PROGRAM
    commands: Mapping[str, str] = COMMANDS
    example = EXAMPLE
    try:
        while True:
            name = arguments.pop(0) if arguments else ""
            if name not in commands:
                return _no_command(program, name, commands, example)
            program = f"{program} {name}"
            command = importlib.import_module(commands[name])
            if not hasattr(command, "COMMANDS"):
                break
            commands, example = command.COMMANDS, command.EXAMPLE
        parser = _Parser(
            prog=program,
            description=command.SUMMARY,
            formatter_class=_help_format,
            allow_abbrev=False,
            add_help=False,
        )
        parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
        command.add_arguments(parser)
        return int(command.run(parser.parse_args(arguments)))
    except (DataError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"{program}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def one_line(error: BaseException) -> str:
    """The message of an error without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _help_format(prog: str) -> argparse.HelpFormatter:
    return argparse.RawDescriptionHelpFormatter(prog, max_help_position=24, width=88)


def _no_command(program: str, name: str, commands: Mapping[str, str], example: str) -> int:
    if name in ("-h", "--help", ""):
        print(_usage(program, commands, example), file=sys.stdout if name else sys.stderr)
        return 0 if name else 2
    raise UsageError(f"no command {name!r}; there is: {', '.join(commands)}")


def _usage(program: str, commands: Mapping[str, str], example: str) -> str:
    lines = [f"usage: {program} COMMAND [OPTIONS]", ""]
    for name, module in commands.items():
        lines.append(f"  {name:12} {importlib.import_module(module).SUMMARY}")
    lines += ["", f"example: {example}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
