"""The command line: the commands put together, and how a process ends."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated, Any

import typer
from safetensors import SafetensorError

from depthcut.commands.apply import apply
from depthcut.commands.doctor import doctor
from depthcut.commands.evaluate import evaluate
from depthcut.commands.export import export
from depthcut.commands.look_up import list_names, schema, validate
from depthcut.commands.merge import merge
from depthcut.commands.prune import prune, run
from depthcut.commands.report import report
from depthcut.commands.score import score
from depthcut.commands.stages import remove, repair, search
from depthcut.commands.study import app as study_app
from depthcut.commands.terminal import is_rank, require_alone
from depthcut.export import VerificationError
from depthcut.types import InputError, LostRankError

INTERRUPTED = 130
"""The exit code that typer makes of Ctrl-C."""
TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="depthcut",
    help="Makes large language models shallower: finds the blocks and sublayers that the output depends on least, "
    "removes them from the weights, repairs and measures the model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (prune, run, score, search, remove, apply, repair, export, report, doctor, validate, schema, merge):
    app.command()(command)
app.command("eval")(evaluate)
app.command("ls")(list_names)
app.add_typer(study_app, name="study")


def _print_version(wanted: bool) -> None:
    if wanted:
        from depthcut import __version__

        print(f"depthcut {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    if context.invoked_subcommand not in ("prune", "run", "search"):
        require_alone(f"depthcut {context.invoked_subcommand}")


def main() -> None:
    """Runs the command line.

    A bad input, a full disk or too little memory ends with one sentence on standard error and exit code 2, a written
    model that is not the one in memory with one sentence and exit code 1, Ctrl-C with 130 and SIGTERM with 143. Of
    several ranks that end so, one says it.
    """
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "0" if sys.stderr.isatty() else "1")
    if is_rank():
        # Each rank would warn of what the Trainer sets for models with experts.
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    before = signal.signal(signal.SIGTERM, _end)
    try:
        app()
    except InputError as error:
        _tell(str(error))
        sys.exit(2)
    except VerificationError as error:
        _tell(f"{error}; the output was not written")
        sys.exit(1)
    except LostRankError:
        _tell("another rank has ended; the same command with --resume goes on")
        sys.exit(1)
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            _tell("interrupted; the same command with --resume goes on" if _is_resumable() else "interrupted")
        raise
    except (OSError, RuntimeError, MemoryError, SafetensorError) as error:
        from depthcut.process.faults import resource_error

        lacking = resource_error(error)
        if lacking is None:
            raise
        _tell(str(lacking))
        sys.exit(2)
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(*_: object) -> None:
    """Ends on SIGTERM as on Ctrl-C: what was found stays."""
    raise SystemExit(TERMINATED)


def _is_resumable() -> bool:
    """Whether the given command takes --resume."""
    command: Any = typer.main.get_command(app)
    for word in sys.argv[1:]:
        command = getattr(command, "commands", {}).get(word, command)
    return any(parameter.name == "resume" for parameter in command.params)


def _tell(sentence: str) -> None:
    """Prints why the process ends, unless another rank has printed it."""
    if is_rank():
        from depthcut.process.ranks import tells

        if not tells():
            return
    print(f"depthcut: {sentence}", file=sys.stderr)


if __name__ == "__main__":
    main()
