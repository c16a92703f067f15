"""Registries: a component's name is the name of the function that builds it.

Every zoo (SR networks, segmentation networks, losses, degradations, schedules, dataset sources) keeps one registry.
A component in a configuration is a mapping `{name: dbpn, stages: 6}`: the name chooses the function, the rest are its
keyword arguments, whose defaults live in the function's signature and nowhere else.
"""

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable, Mapping
from typing import Any


class Registry:
    """Functions by name, with errors that say what to type instead."""

    def __init__(self, kind: str):
        self.kind = kind
        self._factories: dict[str, Callable] = {}

    def register(self, factory: Callable) -> Callable:
        """Decorator: make `factory` available under its own name."""
        name = factory.__name__
        assert name not in self._factories, f"{self.kind} {name!r} is registered twice"
        self._factories[name] = factory
        return factory

    def names(self) -> list[str]:
        """The registered names, sorted."""
        return sorted(self._factories)

    def get(self, name: str) -> Callable:
        """The function registered as `name`; ValueError with the closest names otherwise."""
        if name not in self._factories:
            raise ValueError(f"unknown {self.kind} {name!r}{did_you_mean(name, self.names())}")
        return self._factories[name]

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
            raise ValueError(f"a {self.kind} is a name or a mapping with a name; found {component!r}")
        arguments = {"name": component} if isinstance(component, str) else dict(component)
        if "name" not in arguments:
            raise ValueError(f"a {self.kind} needs a name: one of {', '.join(self.names())}; found {arguments}")
        name = arguments.pop("name")
        factory, parameters = self.get(name), self.parameters(name)
        accepted = {key: value for key, value in context.items() if key in parameters}
        self._check(name, parameters, arguments, accepted)
        return factory(**accepted, **arguments)

    def _check(self, name: str, parameters: Mapping, arguments: dict, context: dict) -> None:
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        settable = [
            p for p in parameters if p not in context and parameters[p].kind is not inspect.Parameter.VAR_KEYWORD
        ]
        for key in arguments:
            if key in context or (key not in settable and not open_ended):
                takes = ", ".join(str(parameters[p]) for p in settable) or "no arguments"
                raise ValueError(
                    f"{self.kind} {name!r} does not take {key!r}{did_you_mean(key, settable)}; it takes: {takes}"
                )
        required = [p for p in settable if parameters[p].default is inspect.Parameter.empty]
        missing = [p for p in required if p not in arguments]
        if missing:
            raise ValueError(f"{self.kind} {name!r} needs {', '.join(missing)}")


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """A clause for an error message: the closest of `choices`, or all of them."""
    choices = list(choices)
    close = difflib.get_close_matches(str(word), choices, n=3)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    return f" (choose from {', '.join(choices)})" if choices else ""


def import_siblings(package: str, path: Iterable[str]) -> None:
    """Import every module beside a zoo's `__init__`, so that each registers what it defines."""
    for module in pkgutil.iter_modules(path):
        importlib.import_module(f"{package}.{module.name}")
