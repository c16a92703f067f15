"""Ctrl-C, hang-ups and requests to stop: one line, and no traceback, from every command."""

import os
import re
import signal
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, NoReturn

from cssr.utils.text import one_line

_MAX_LENGTH = 2000  # characters of the line in which a command fails, which may repeat what it was given
_EMPTY = re.compile(r"(--[\w-]+=)?")  # an argument, or the value of an option
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def handle_signals() -> None:
    """End this program with one line on SIGINT, SIGTERM and SIGHUP, whatever it is doing: imports included.

    To be called first of all in a command. A signal that is ignored (under nohup) stays so; the exit status is 130.
    """
    sys.excepthook = _excepthook
    for number in handled_signals():
        signal.signal(number, _interrupt)


def handled_signals() -> list[signal.Signals]:
    """Signals that end a command, without those that are ignored (under nohup)."""
    return [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]


def run(main: Callable[[], Any]) -> Any:
    """Run a command's `main`; afterwards, while the interpreter shuts down, the signals end the process at once.

    Characters that the terminal's encoding lacks are written as escapes, so that no name makes a command fail. In
    `--out=~/results` the `~` is expanded, which shells do only at the beginning of a word. An empty argument is an
    error: as a path it would be the working directory.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (s and (Terminal(s) if s.isatty() else Stream(s)) for s in (sys.stdout, sys.stderr))
    empty = next((word for word in sys.argv[1:] if _EMPTY.fullmatch(word)), None)
    if empty is not None:
        sys.exit(f"error: an argument is empty ({empty!r}), as of a variable that is not set: give it, or leave it out")
    words = [word.partition("=") if word.startswith("--") else (word, "", "") for word in sys.argv]
    sys.argv = [f"{option}{equals}{os.path.expanduser(value)}" for option, equals, value in words]
    try:
        return main()
    except KeyboardInterrupt as stop:
        _print_interrupt(stop)
        return 130
    except SystemExit as end:
        end.code = one_line(end.code)[:_MAX_LENGTH] if isinstance(end.code, str) else end.code
        raise
    finally:
        for number in handled_signals():
            signal.signal(number, signal.SIG_DFL)


class Stream:
    """A text stream that discards what is written once its reader has closed, as in `| head`: no work is lost by it."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, as a text stream does."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        """Flush the stream, as a text stream does."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._discard_output()

    def _discard_output(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Terminal(Stream):
    """A terminal's stream on which control characters are written out, so that no file's name and no server's answer
    moves the cursor or sets the title; lines, tabs, and what tqdm moves its bars by stay.
    """

    _CONTROL = re.compile(r"\x1b(?!\[A)|[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]")

    def write(self, text: str) -> int:
        """Write text, as a text stream does."""
        return super().write(self._CONTROL.sub(lambda match: repr(match[0])[1:-1], text))


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Block the signals of a terminal; processes begun meanwhile never get them, as their parent answers for them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def detach_terminal() -> None:
    """Discard what would go to a terminal that is closed, where every write is an error."""
    for number in (1, 2):
        if stat.S_ISCHR(os.fstat(number).st_mode):
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)


def _interrupt(number: int, _: FrameType | None) -> NoReturn:
    if number == signal.SIGHUP:
        detach_terminal()
    for ending in ENDING:  # a second signal does not wait for the cleanup
        if signal.getsignal(ending) is _interrupt:
            signal.signal(ending, signal.SIG_DFL)
    raise KeyboardInterrupt


def _excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        _print_interrupt(error)
    else:
        sys.__excepthook__(kind, error, trace)


def _print_interrupt(stop: BaseException) -> None:
    if os.environ.get("RANK", "0") == "0":
        print(f"error: {str(stop) or 'interrupted; the same command begins again'}", file=sys.stderr)
