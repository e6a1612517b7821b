"""How a script that is run by its name ends: one line for what went wrong, and an exit code."""

import contextlib
import functools
import os
import sys

from checks import only_draws
from commands import resume_command
from config import end_unread, refuse
from distributed import first_only, leave, wait, world
from flags import ask_tyro
from interruption import Stopped


def exit_cleanly(main):
    """Exit codes: 0 done, 2 the user can mend it, 1 ours (a traceback), 130 and 143 stopped,
    141 nobody reads any more."""

    @functools.wraps(main)
    def wrapped(config):
        sys.stdout, sys.stderr = sys.stdout or nowhere(), sys.stderr or nowhere()
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # a class or a folder that a code page cannot name
                stream.reconfigure(errors="backslashreplace")
        try:
            return main(config)
        except BrokenPipeError:
            end_unread()
        except (ValueError, OSError) as error:
            refuse(error)
        except RuntimeError as error:
            if world() == 1 or not any(word in str(error) for word in ("peer", "remote process")):
                raise
            say("error: another process of this run ended; torchrun says below which was the first")
            raise SystemExit(1) from None
        except Stopped as stop:
            say(f"stopped; go on with: {resume_command(stop.folder)}")
            wait()  # torchrun ends the others when the first is gone
            raise SystemExit(128 + stop.signum) from None
        except KeyboardInterrupt:
            trains = isinstance(config, dict) and not only_draws(config)
            say("stopped" + "; where a run folder was printed, --resume goes on" * trains)
            raise SystemExit(130) from None

    return wrapped


def read_flags(kind):
    """The command line as a dataclass `kind`; a mistake in it ends in one line and exit code 2."""
    try:
        return ask_tyro(kind)
    except BrokenPipeError:
        end_unread()
    except ValueError as error:
        refuse(error)
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def exit_together(main):
    """Of several processes every one ends with `leave` where `main` ends or exits."""

    @functools.wraps(main)
    def wrapped(config):
        if world() == 1:
            return main(config)
        try:
            main(config)
        except SystemExit as stop:
            leave(stop.code)
        leave(0)

    return wrapped


def nowhere():
    """What stands for a stream that was closed (2>&-)."""
    return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


@first_only
def say(text):
    with contextlib.suppress(OSError):  # the exit code says it, too
        print(text, file=sys.stderr, flush=True)
