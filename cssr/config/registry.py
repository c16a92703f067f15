"""Registries: a component's name is the name of the function that builds it.

Each kind of component (SR networks, segmentation networks, losses, degradations, schedules, dataset sources) has one.
A component in a configuration is a mapping `{name: dbpn, stages: 6}`: the name chooses the function, the rest are its
keyword arguments. Defaults are in the function's signature and nowhere else.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, get_type_hints

from cssr.utils.annotations import Within, described, fits, shortened

_LONGEST = 600  # characters of an error, which may repeat what it was given
_MOST_SHOWN = 40  # names in an error
_MOST_VALUES = 1000  # in an argument, its lists and mappings included
Count = Annotated[int, Within(1, 4096)]  # channels, layers, stages
KernelSide = Annotated[int, Within(1, 101)]  # of a kernel, pixels
Share = Annotated[float, Within(0, 1)]
Samples = Annotated[int, Within(0, 10**15)]  # seen so far
Weight = Annotated[float, Within(0, 1e6)]


class Registry:
    """Functions by name, with errors that say what to type instead.

    Args:
        kind: of component, in errors.
        package: its modules register what they define. They are imported when a name is first asked for, so that
            a command loads what it uses, and such a module may import a module that uses the registry.
    """

    def __init__(self, kind: str, package: str = ""):
        self.kind, self.package, self._imported = kind, package, not package
        self._factories: dict[str, Callable] = {}

    def register(self, factory: Callable) -> Callable:
        """Decorator: make `factory` available under its own name."""
        if not factory.__module__.startswith(f"{self.package}."):  # a user's own
            self._import()
        name = factory.__name__
        assert name not in self._factories, f"{self.kind} {name!r} is registered twice"
        self._factories[name] = factory
        return factory

    def names(self) -> list[str]:
        """The registered names, sorted."""
        self._import()
        return sorted(self._factories)

    def get(self, name: str) -> Callable:
        """The function registered as `name`; ValueError with the closest names otherwise."""
        if name not in self.names():
            raise ValueError(f"unknown {self.kind} {name!r}{did_you_mean(name, self.names())}")
        return self._factories[name]

    def _import(self) -> None:
        if not self._imported:
            for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._imported = True

    def parameters(self, name: str) -> Mapping[str, inspect.Parameter]:
        """The settings that the function registered as `name` takes."""
        return inspect.signature(self.get(name)).parameters

    def build(self, component: str | Mapping[str, Any], **context: Any) -> Any:
        """Call the function that `component` names.

        Args:
            component: a name, or `{"name": ..., **arguments}`.
            context: values that the caller has (a scale, say); passed on only where the signature takes them.
        Raises:
            ValueError: unknown name, unknown argument, or a value that the function refuses.
        """
        if not isinstance(component, (str, Mapping)):
            raise ValueError(f"a {self.kind} is a name or a mapping with a name; got {component!r}")
        arguments = {"name": component} if isinstance(component, str) else dict(component)
        if "name" not in arguments:
            raise ValueError(f"a {self.kind} needs a name: one of {', '.join(self.names())}; got {arguments}")
        name = arguments.pop("name")
        if not isinstance(name, str):
            raise ValueError(f"the name of a {self.kind} is a word, got {name!r}: one of {', '.join(self.names())}")
        factory, parameters = self.get(name), self.parameters(name)
        accepted = {key: value for key, value in context.items() if key in parameters}
        self._check(name, parameters, arguments, accepted)
        try:
            return factory(**accepted, **arguments)
        except ValueError as error:
            if len(str(error)) <= _LONGEST:
                raise
            raise ValueError(f"{str(error)[:_LONGEST]}...") from error

    def _check(self, name: str, parameters: Mapping, arguments: dict, context: dict) -> None:
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        settable = [
            p for p in parameters if p not in context and parameters[p].kind is not inspect.Parameter.VAR_KEYWORD
        ]
        for key in arguments:
            taken = key in settable or (open_ended and isinstance(key, str) and not _misspells(key, settable))
            if key in context or not taken:
                takes = ", ".join(_in_words(parameters[p]) for p in settable) or "no arguments"
                raise ValueError(
                    f"{self.kind} {name!r} does not take {key!r}{did_you_mean(key, settable)}; it takes: {takes}"
                )
        required = [p for p in settable if parameters[p].default is inspect.Parameter.empty]
        missing = [p for p in required if p not in arguments]
        if missing:
            raise ValueError(f"{self.kind} {name!r} needs {', '.join(missing)}")
        try:
            hints = get_type_hints(self.get(name), include_extras=True)
        except NameError:  # what somebody else's module imports for type checkers only
            hints = {}
        for key, value in arguments.items():
            kind = hints.get(key, parameters[key].annotation if key in parameters else Any)
            if kind is not inspect.Parameter.empty and not fits(value, kind):
                raise ValueError(f"{self.kind} {name!r}: {key} must be {described(kind)}, got {shortened(value)}")
            if (count := _count(value)) > _MOST_VALUES:
                raise ValueError(f"{self.kind} {name!r}: {key} holds {count} values: give at most {_MOST_VALUES}")


def _in_words(parameter: inspect.Parameter) -> str:
    """`stages: a whole number of 1 to 4096 = 6`."""
    empty = inspect.Parameter.empty
    kind = "" if parameter.annotation is empty else f": {described(parameter.annotation)}"
    return f"{parameter.name}{kind}" + ("" if parameter.default is empty else f" = {parameter.default!r}")


def _count(value: Any) -> int:
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ()
    return 1 + sum(map(_count, parts))


def _misspells(word: str, names: list[str]) -> bool:
    """Return whether a word that another library may take is rather one of our own names, cut short or mistyped."""
    return any(name.startswith(word) for name in names) or bool(difflib.get_close_matches(word, names, cutoff=0.8))


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause for an error message: the closest of `choices`, or all of them."""
    choices = list(choices)
    begun = [choice for choice in choices if len(str(word)) > 1 and choice.startswith(str(word))]
    close = begun[:3] or difflib.get_close_matches(str(word), choices, n=3)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    more = f" and {len(choices) - _MOST_SHOWN} more" if len(choices) > _MOST_SHOWN else ""
    return f" (choose from {', '.join(choices[:_MOST_SHOWN])}{more})" if choices else ""
