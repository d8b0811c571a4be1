"""The application: its commands; here every error becomes one line and an exit code."""

from __future__ import annotations

import re
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cace_fast import __version__
from cace_fast.cli import bench, config, convert, doctor, evaluate, info, lammps, md, relax, verify
from cace_fast.errors import CaceFastError, VerificationError

FAILED, USAGE, INPUT, INTERNAL = 1, 2, 3, 70
CODES = (
    "Exit codes: 0 success, 1 a check failed, a relaxation did not converge, or frames were "
    "skipped, 2 usage, 3 input (files, structures, models), 70 internal error, 130 interrupted, "
    "143 terminated."
)


class Group(TyperGroup):
    """The commands; errors are printed as one line on stderr (``docs/user/errors.md``)."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command line and exit with its code (``docs/user/errors.md``, "Exit codes")."""
        options["standalone_mode"] = False  # errors come here
        try:
            result = super().main(*args, **options)
        except Exception as error:
            words = args[0] if args else options.get("args")
            if _debugging(words):
                raise
            sys.exit(_explain(error, self._options(words)))
        sys.exit(result if isinstance(result, int) else 0)

    def _options(self, words: list[str] | None) -> set[str]:
        """Return the names of the options of the command that was called."""
        for word in sys.argv[1:] if words is None else words:
            if word in self.commands:
                return {name for p in self.commands[word].params for name in p.opts}
        return set()


def _debugging(arguments: list[str] | None) -> bool:
    return "--debug" in (sys.argv[1:] if arguments is None else arguments)


def _as_options(text: str, options: set[str]) -> str:
    """Return a message with Python's ``name=value`` as ``--name value``, where the option exists.

    So a remedy can be followed on the command line, wherever its text comes from.
    """

    def option(found: re.Match[str]) -> str:
        name, value = "--" + found[1].replace("_", "-"), found[2].strip("'\"")
        return f"{name} {'none' if value == 'None' else value}" if name in options else found[0]

    return re.sub(r"\b([a-z]\w*)=('[^']*'|\"[^\"]*\"|\.\.\.|[\w-]+(?:\.\w+)*)", option, text)


def _explain(error: Exception, options: set[str]) -> int:
    """Print one line for ``error`` and return the exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":  # the help, which rich has printed already
        print(str(error), end="", file=sys.stderr)
        return USAGE
    if hasattr(error, "format_message"):  # click's errors; typer brings click under its own name
        context = getattr(error, "ctx", None)
        path = context.command_path if context is not None else "cace-fast"
        _print_error(f"{error.format_message().rstrip('.')}. See '{path} --help'.")
        return USAGE
    if isinstance(error, CaceFastError | OSError):
        _print_error(_as_options(str(error), options))
        return FAILED if isinstance(error, VerificationError) else INPUT
    _print_error(
        f"internal error: {type(error).__name__}: {error}. This is a fault of cace-fast: run again "
        "as 'cace-fast --debug ...' and report the traceback."
    )
    return INTERNAL


def _print_error(message: str) -> None:
    print(f"cace-fast: error: {' '.join(message.split())}", file=sys.stderr)


app = typer.Typer(
    cls=Group,
    name="cace-fast",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={
        "help_option_names": ["-h", "--help"],
        # other programs write --default_dtype: both spellings work
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
    epilog=CODES,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"cace-fast {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Fast, safe inference for CACE interatomic potentials."""
    del version, debug  # the first has a callback, the second is read where errors are caught


for name, command in (
    ("info", info.info),
    ("convert", convert.convert),
    ("eval", evaluate.evaluate),
    ("md", md.md),
    ("relax", relax.relax),
    ("verify", verify.verify),
    ("bench", bench.bench),
    ("doctor", doctor.doctor),
    ("config", config.config),
):
    app.command(name)(command)
app.add_typer(lammps.app, name="lammps")
