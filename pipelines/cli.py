"""The command `sparsefleet`. This file only knows the commands' names, so that `--help` starts at once; each command's
own file is imported when it is used."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

SECTIONS = {
    "Work": {
        "ingest": "Turn photographs, arrays, sounds or series into a data set.",
        "harvest": "Write the activations of a language model as data sets.",
        "learn": "Learn a dictionary from a data set and publish a version of it.",
        "encode": "Compute sparse codes of a data set under a dictionary.",
        "denoise": "Take noise from a photograph, or fill its missing pixels.",
        "interpret": "Judge a sparse autoencoder; an HTML report of its latents.",
        "plan": "Predict memory, bytes and time of a job; publish nothing.",
    },
    "Look": {
        "artifacts": "List, compare, move, export and check published versions.",
        "data": "Show or verify a data set.",
        "models": "List the models, or one model's settings.",
        "coders": "List the coders, or one coder's settings.",
        "recipes": "List the recipes: experiments by name.",
        "engines": "List the engines and whether they can run here.",
    },
    "Prefect": {
        "up": "Start the local Prefect server, its UI and a worker.",
        "down": "Stop what `up` started.",
        "deploy": "Register the flows with a work pool: forms in the UI.",
        "serve": "Serve the flows from this terminal, without a work pool.",
        "status": "Show runs, or one run.",
        "logs": "Show a run's log; -f follows it.",
        "cancel": "Cancel a run and end its workers.",
        "resume": "Continue a run that did not finish.",
    },
}
"""A command's help here; its code is `command` in commands/NAME.py."""


class Commands(click.Group):
    """The table above as a click group that imports a command when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for section in SECTIONS.values() for name in section]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        return import_module(f"sparsefleet.pipelines.commands.{cmd_name}").command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, rows in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl(list(rows.items()))


EXAMPLES = """
\b
First steps:
  sparsefleet ingest images photos/*.jpg --patch 16 --rows 50000 --out data/patches.zarr
  sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --name my-patches --dry-run
  sparsefleet learn --data data/patches.zarr --model bsc --atoms 200 --name my-patches
  sparsefleet artifacts show my-patches

\b
Every command knows --help and --json (one JSON document on stdout, messages on stderr).
Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 130 interrupted.
"""


@click.group(cls=Commands, epilog=EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(None, "--version", package_name="sparsefleet", message="sparsefleet %(version)s")
def cli() -> None:
    """Learn dictionaries and sparse codes on a laptop or a cluster."""


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit: 0 done, 1 the run failed, 2 bad input, 130 interrupted, 141 the reader went away."""
    # What a worker of ours prints must not be lost in a pipe's buffer, and no library may phone home.
    os.environ.setdefault("DO_NOT_TRACK", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        code = cli.main(args, prog_name="sparsefleet", standalone_mode=False)
        sys.stdout.flush()
    except SystemExit as err:
        # How click answers a broken pipe (1), or a shell that asks for completions (0).
        code = 141 if err.code == 1 else err.code
    except BrokenPipeError:
        # Python would complain once more while it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except click.exceptions.NoArgsIsHelpError as err:
        err.show()
        code = 2
    except click.ClickException as err:
        code = _say(_usage(err), 2)
    except Exception as err:
        code = _known(err)
        if code is None:
            raise
    sys.exit(code or 0)


_BAD_INPUT = (
    ("sparsefleet.pipelines.errors", "PipelineError"),
    ("sparsefleet.storage.errors", "StorageError"),
    ("sparsefleet.models.errors", "ModelError"),
    ("sparsefleet.workers.errors", "JobError"),
)


def _known(err: Exception) -> int | None:
    """Exit code of an error that a user can act on, its line being said; None for a fault of ours."""
    if any(_is(err, *known) for known in _BAD_INPUT):
        return _say(str(err), 2)
    if isinstance(err, (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError)):
        return _say(f"{err.filename or ''}: {err.strerror or err}".lstrip(": "), 2)
    if isinstance(err, ImportError) and "pip install" in str(err):
        return _say(str(err), 2)
    if _is(err, "sparsefleet.workers.errors", "EngineError") or _is(err, "sparsefleet.pipelines.errors", "Cancelled"):
        return _say(str(err), 1)
    return None


def _is(err: Exception, module: str, name: str) -> bool:
    # An error's class is loaded if it was raised; importing it here would load torch for a typing mistake.
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(err, cls)


def _usage(err: click.ClickException) -> str:
    context = err.ctx if isinstance(err, click.UsageError) else None
    hint = f" (see {context.command_path} --help)" if context else ""
    return err.format_message().rstrip(".") + hint


def _say(message: str, code: int) -> int:
    text = " ".join(message.split())
    if os.environ.get("SPARSEFLEET_LOG") == "json":
        from .console import say

        say(text, logging.ERROR)
    else:
        click.echo(f"error: {text}", err=True)
    return code
