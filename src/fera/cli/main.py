"""The command line: parses, calls, shows. Nothing imports it.

A command is a module `fera.cli.<name>` with two functions, and one line in `COMMANDS`:

- `add_arguments(parser)` declares its options (nothing heavy is imported there),
- `run(arguments)` does the work, imports what it needs, and returns an exit code.

Exit codes: 0 done; 2 a mistake of the user's (`FeraError`, printed as one `error:` message); 130 interrupted.
"""

import argparse
import keyword
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import NoReturn, Protocol, cast

from fera.cli.requirements import check_installed
from fera.errors import FeraError
from fera.support.hints import hint
from fera.version import __version__

# Name to the line that `fera --help` shows; `module_name` says where it is.
COMMANDS: dict[str, str] = {
    "train": "fine-tune a diffusers pipeline, as a TOML file and flags say",
    "data": "check a folder of training pictures before anything is trained, or caption it",
    "calibrate": "choose kappa, the scale of the frequency bands, from training pictures",
    "generate": "draw images from prompts, with adapters",
    "inspect": "show what an adapter's file holds",
    "analyze": "show how energies and gates move while a model denoises, and what each expert does",
    "export": "write an adapter as a plain LoRA, for tools without fera",
    "merge": "write a base with an adapter merged into it, for diffusers without fera",
    "import": "turn a checkpoint of the released FeRA code into an adapter",
    "push": "upload an adapter and its card to the Hugging Face Hub",
    "report": "write one HTML file about a training run",
    "web": "serve a page on this machine, to train, watch and draw in",
    "evaluate": "measure adapters on real pictures: held-out loss, style, concepts, distances",
    "compare": "train methods side by side on styles and seeds, and say what their differences are worth",
    "demo": "fine-tune the bundled emoji base to another style, with pictures before and after",
    "models": "list the models that can be adapted, or the layers of one",
    "config": "describe the keys of a training configuration",
}

# Commands by the names that they once had.
RENAMED = {"denoisers": "models"}


class Command(Protocol):
    """What a module in `fera.cli` offers."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the command's options."""

    def run(self, arguments: argparse.Namespace) -> int:
        """Do the work; returns the exit code."""


class _Parser(argparse.ArgumentParser):
    """An argument parser that reports mistakes as `FeraError`, like the rest of fera."""

    def error(self, message: str) -> NoReturn:
        raise FeraError(f"{message}\nSee: {self.prog} --help")


class _Version(argparse.Action):
    """Prints what a report of a bug should begin with, in one line: argparse's own action would wrap it."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "peft", "accelerate"))
        print(f"fera {__version__} ({libraries})")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; those of the process when left out.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    argv[:1] = [RENAMED.get(name, name) for name in argv[:1]]
    try:
        return _run(argv)
    except FeraError as error:
        _print_error(str(error))
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except SystemExit as exit_:  # argparse, after --help
        return exit_.code if isinstance(exit_.code, int) else 0


def _run(argv: list[str]) -> int:
    parser = _Parser(
        prog="fera",
        description="Fine-tune diffusion models with frequency-energy routed experts.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show versions, of fera and of what it stands on")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    chosen = argv[0] if argv else ""
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".", allow_abbrev=False
        )
        # Only the chosen command's module is imported: `fera --help` stays quick.
        if name == chosen:
            check_installed()
            _module(name).add_arguments(subparser)
            chosen_parser = subparser
    arguments, unknown = parser.parse_known_args(argv)
    if unknown:
        raise FeraError(_describe_unknown(unknown, chosen_parser))
    try:
        return _module(arguments.command).run(arguments)
    except FeraError as error:
        raise FeraError(in_flags(str(error), chosen_parser)) from error


def in_flags(message: str, parser: argparse.ArgumentParser) -> str:
    """A message of the library in the words of a command: the arguments that it names become flags.

    Args:
        message: names arguments in backticks, as `FeraError` says.
        parser: the parser of the command.
    """
    flags = {action.dest: action.option_strings[0] for action in _actions(parser) if action.option_strings}
    return re.sub(r"`(\w+)`", lambda found: flags.get(found[1], found[0]), message)


def module_name(command: str) -> str:
    """Name of a command's module."""
    name = command.replace("-", "_")
    return f"fera.cli.{name}_" if keyword.iskeyword(name) else f"fera.cli.{name}"


def _module(name: str) -> Command:
    return cast(Command, import_module(module_name(name)))


def _describe_unknown(unknown: list[str], parser: argparse.ArgumentParser) -> str:
    """Message for arguments that no option takes, with the nearest option that exists."""
    name = unknown[0].split("=")[0]
    if not name.startswith("-"):
        return f"unexpected argument {unknown[0]!r}\nSee: {parser.prog} --help"
    # All at once: who comes from another trainer brings several.
    names = dict.fromkeys(text.split("=")[0] for text in unknown if text.startswith("-"))
    options = list(_options(parser))
    lines = [f"unknown option {name}{_nearest(name, options)}" for name in names]
    return "\n".join([*lines, f"See: {parser.prog} --help"])


def _nearest(name: str, options: list[str]) -> str:
    if "--data.train_data_dir" in options:  # of a training configuration
        from fera.config.foreign_keys import word_for

        if word := word_for(name.lstrip("-"), as_flag=True):
            return f"; {word}"
    return hint(name, options, cutoff=0.5)


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Options of a command and of its actions."""
    for action in _actions(parser):
        yield from action.option_strings


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _actions(inner)


def _print_error(message: str) -> None:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:  # the library alone is installed
        print(f"error: {message}", file=sys.stderr)
        return
    console = Console(stderr=True)
    console.print(Text("error: ", style="bold red") + Text(message, style="not bold"), soft_wrap=True)
