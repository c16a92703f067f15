"""Command lines: a parser that raises its complaints, and how errors end a command."""

import argparse
import gc
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType
from typing import NoReturn

from cssr.utils.files import error_line


def check_bits(bits: int | None) -> None:
    """ValueError unless it is the number of bits of values that are stored in 16."""
    if bits is not None and not 8 <= bits <= 16:
        raise ValueError(f"--bits is {bits}; give 8 to 16, the bits of values that are stored in 16")


def program(script: str) -> str:
    """The name of a command in --help: `cssr NAME` where it was started so, or else `script`."""
    return sys.argv[0] if sys.argv[0].startswith("cssr ") else script


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its complaints, so that all mistakes end alike."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; `{self.prog} --help` lists the options")

    def parse_args(self, args: Sequence[str], namespace: argparse.Namespace | None = None) -> argparse.Namespace:
        """Parse; an option given twice is a ValueError, of which argparse would silently take the last."""
        fault = _given_twice(args)
        if fault:
            raise ValueError(fault)
        return super().parse_args(args, namespace)


class ExitingParser(argparse.ArgumentParser):
    """An argument parser whose complaints, those of an option given twice too, are one line and end the process."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; `{self.prog} --help` lists the options\n")

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse as all ways of parsing do in the end."""
        fault = _given_twice(sys.argv[1:] if args is None else args)
        if fault:
            self.exit(2, f"error: {fault}\n")
        return super().parse_known_args(args, namespace)


def _given_twice(words: Sequence[str]) -> str | None:
    flags = Counter(word.partition("=")[0] for word in words if word.startswith("--") and word != "--")
    flag, count = next(iter(flags.most_common(1)), ("", 0))
    return f"{flag} is given {count} times; give it once, with all that belongs to it" if count > 1 else None


@contextmanager
def quick_imports(compiler: bool = True) -> Iterator[None]:
    """Import without garbage collection, which frees nothing and takes an eighth of the time of torch and others.

    Args:
        compiler: whether what is imported may compile networks; without it, a third of the time is saved.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        if not compiler:
            _import_timm()
        yield
    finally:
        if enabled:
            gc.enable()


def _import_timm() -> None:
    """Import timm, and with it torchvision, without torch's compiler.

    They import it for a function about detection boxes, and for one that is not to be compiled. Both have stand-ins.
    Where another version wants more of the compiler, timm is left to be imported as usual.
    """
    names = ("torch._dynamo", "torch._dynamo.utils")
    if sys.modules.keys() & {*names, "torchvision"}:
        return

    def is_compile_supported(device: str) -> bool:
        return importlib.import_module("torch._dynamo.utils").is_compile_supported(device)

    stand_ins = {name: ModuleType(name) for name in names}
    stand_ins["torch._dynamo"].disable = lambda function, *_, **__: function
    stand_ins["torch._dynamo.utils"].is_compile_supported = is_compile_supported
    import torch  # noqa: F401, before the stand-ins are there

    sys.modules.update(stand_ins)
    with suppress(ImportError, AttributeError):
        import timm  # noqa: F401
    for name, module in stand_ins.items():
        if sys.modules.get(name) is module:
            del sys.modules[name]


@contextmanager
def exit_on_error() -> Iterator[None]:
    """End the process with one line and exit status 1 on a mistake of the user."""
    try:
        yield
    except (ValueError, OSError) as problem:
        sys.exit(f"error: {error_line(problem)}")


def run_command(
    command: Callable[[list[str]], int], arguments: list[str] | None, interrupted: str = "the same command continues"
) -> int:
    """Exit status of a command: what `command` returns, 2 for a mistake of the user, 130 when interrupted.

    Args:
        arguments: of the command line; None: those of this process.
        interrupted: what the one line on an interruption says of it, unless the interruption itself says more.
    """
    try:
        return command(sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as problem:
        print("error:", error_line(problem), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("error:", str(stop) or f"interrupted; {interrupted}", file=sys.stderr)
        return 130
