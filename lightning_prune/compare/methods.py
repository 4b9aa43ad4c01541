"""The methods that a comparison is of: what `--methods` says, and what their classes say of themselves."""

from __future__ import annotations

import inspect
import pkgutil
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard, final

import yaml

import lightning_prune
from lightning_prune import PruningCallback, scoring
from lightning_prune.core.method import arguments_of, ratio_setting
from lightning_prune.core.ratio import MEASURED, Curve, RatioSetting, known_curve
from lightning_prune.methods._wrapper import MethodWrapper, ScoreWrapper
from lightning_prune.methods.budget import budgeted

FULL = "full data"
PILOT = "pilot of "


@final
class RefusedError(ValueError):
    """A mistake of the user's; the message says how to mend it."""


@final
@dataclass(frozen=True)
class Method:
    """A method to compare, and what is known of it: a name, or an entry of a file of methods."""

    label: str
    class_path: str
    init_args: dict[str, Any] = field(default_factory=dict)

    @property
    def cls(self) -> type[PruningCallback]:
        """The class.

        Raises:
            RefusedError: If there is no such class.
        """
        return class_of(self.class_path, self.label)

    @property
    def base(self) -> Method | None:
        """The method that it wraps, if any."""
        return self._wrapped if issubclass(self.cls, ScoreWrapper) else None

    @property
    def _wrapped(self) -> Method | None:
        entry = self.init_args.get("base") if issubclass(self.cls, MethodWrapper) else None
        entry = {"class_path": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or not isinstance(entry.get("class_path"), str):
            return None  # what it is instead, the parser of the configuration will say
        return Method(self.label, entry["class_path"], entry.get("init_args") or {})

    @property
    def setting(self) -> RatioSetting | None:
        """How it is set to reach a ratio; None: it is run once, with the arguments given."""
        if self.base is not None:
            setting = self.base.setting
            return setting and setting.measured_at(*ScoreWrapper.wrapped_pilots)
        setting = ratio_setting(self.cls)
        return None if setting is None or setting.fixed_by(self.init_args) else setting

    @property
    def _innermost(self) -> Method:
        return self if self._wrapped is None else self._wrapped._innermost

    @property
    def is_budgeted(self) -> bool:
        """Whether a run of it goes by what it has saved so far."""
        return issubclass(self.cls, MethodWrapper) and not issubclass(self.cls, ScoreWrapper)

    def budgeted(self) -> Method:
        """Return the same set epoch by epoch, so that the run saves a share; itself where no pilots are needed anyway.

        A method of somebody else's that does not say how a ratio sets it is left to pilots, too.
        """
        setting = self.setting
        if setting is None or not setting.pilots or ratio_setting(self._innermost.cls) is MEASURED:
            return self
        entry = budgeted({"class_path": self.class_path, "init_args": self.init_args})
        return replace(self, class_path=entry["class_path"], init_args=entry["init_args"])

    def curve(self, max_epochs: int) -> Curve:
        """Return what it saves where it is set to a share, as far as is known without a run: of a budget, the most."""
        setting = self.setting
        assert setting is not None  # noqa: S101  (narrowing)
        if not self.is_budgeted:
            return known_curve(setting, max_epochs, self.with_defaults())
        inner = self._innermost
        warmup = {"warmup_epochs": max(self.init_args.get("warmup_epochs", 0), inner.init_args.get("warmup_epochs", 0))}
        own = ratio_setting(inner.cls)
        assert own is not None  # noqa: S101  (narrowing)
        most = known_curve(own, max_epochs, {**inner.with_defaults(), **warmup})[-1][1]
        return [(0.0, 0.0), (most, most)]

    @property
    def bound(self) -> str:
        """Why it reaches no further, and what to do."""
        setting = ratio_setting(self._innermost.cls)
        return "" if setting is None else setting.bound

    def arguments(self, solved: dict[str, Any]) -> dict[str, Any]:
        """Return its arguments with those that set it to a ratio, which may be its base's."""
        if self.base is None:
            return {**self.init_args, **solved}
        return {
            **self.init_args,
            "base": {"class_path": self.base.class_path, "init_args": self.base.arguments(solved)},
        }

    def example(self) -> dict[str, Any]:
        """Return arguments of a run of it, to check what is given before any is made."""
        return self.arguments({} if self.setting is None else self.setting.arguments(self.setting.most / 2))

    def with_defaults(self) -> dict[str, Any]:
        """Return its arguments, defaults included."""
        return arguments_of(self.cls) | self.init_args


def own_methods() -> dict[str, type[PruningCallback]]:
    """Return the methods of this package by name."""
    found: dict[str, type[PruningCallback]] = {}
    for module in (lightning_prune, scoring):
        things = {name: getattr(module, name) for name in sorted(module.__all__, key=str.lower)}
        found |= {name: thing for name, thing in things.items() if _is_method(thing) and thing is not PruningCallback}
    return found


def known_methods() -> list[str]:
    """Return the names of the methods that can be set to a ratio without further arguments."""
    return [name for name, method in own_methods().items() if ratio_setting(method) and method.needs_arguments is None]


def read_methods(text: str) -> list[Method]:
    """Return the method of a name or of an import path, or those of a file.

    Raises:
        RefusedError: If it is none of these, or a name does not do.
    """
    return _of_file(text) if Path(text).suffix in (".yaml", ".yml") else [_of_name(text)]


def _of_name(text: str) -> Method:
    name, class_path = text.rpartition(".")[2], _full_path(text)
    method, reason = _find(class_path)
    if method is None or ("." not in text and name not in own_methods()):
        raise RefusedError(
            f"Expected each of `--methods` to be one of {', '.join(known_methods())}, the import path of your own "
            f"`PruningCallback`, or a yaml file of methods, but got {text!r}{reason if '.' in text else ''}."
        )
    if (missing := _missing_arguments(method)) is not None:
        why, arguments = missing
        raise RefusedError(
            f"Expected more than the name of {name} in `--methods`: {why}. Give it in a yaml file of methods, as "
            f"`{name}: {{class_path: {text}, init_args: {{{arguments}}}}}`."
        )
    return Method(name, class_path)


def _missing_arguments(method: type[PruningCallback]) -> tuple[str, str] | None:
    """Return why a method's name is not enough, and what to give in yaml; None: it is."""
    if method.needs_arguments is not None:
        return method.needs_arguments
    setting = ratio_setting(method)
    solved = setting.arguments(setting.most) if setting else {}
    bare = [name for name, default in arguments_of(method).items() if default is inspect.Parameter.empty]
    bare = [name for name in bare if name not in solved]
    if not bare:
        return None
    return f"{', '.join(f'`{name}`' for name in bare)} must be given", ", ".join(f"{name}: ..." for name in bare)


def _of_file(text: str) -> list[Method]:
    try:
        entries = yaml.safe_load(Path(text).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise RefusedError(f"Expected `--methods` to name a readable yaml file, but got {text!r}: {error}") from error
    return of_entries(entries, repr(text))


def of_entries(entries: Any, where: str) -> list[Method]:
    """Return the methods of ``{label: {class_path: ..., init_args: {...}}}``.

    Args:
        entries: The mapping.
        where: Where it is from, for messages.

    Raises:
        RefusedError: If it is something else.
    """
    hint = f"Expected {where} to hold `label: {{class_path: ..., init_args: {{...}}}}` for each method, but"
    if not isinstance(entries, dict) or not entries:
        held = "is empty" if not entries else f"holds a {type(entries).__name__}"
        raise RefusedError(f"{hint} it {held}.")
    methods = []
    for label, entry in entries.items():
        given = entry if isinstance(entry, dict) else {}
        if not isinstance(given.get("class_path"), str) or set(given) - {"class_path", "init_args"}:
            raise RefusedError(f"{hint} {label!r} is {entry!r}.")
        check_label(label)
        class_path = _full_path(given["class_path"])
        class_of(class_path, label)
        methods.append(Method(str(label), class_path, dict(given.get("init_args") or {})))
    return methods


def check_label(label: Any) -> None:
    """Refuse a label that cannot name files, or is one of ours.

    Raises:
        RefusedError: If it is.
    """
    if not re.fullmatch(r"[\w .,+=()-]+", str(label)) or str(label).startswith((FULL, PILOT)):
        raise RefusedError(
            f"Expected labels that can name files, of letters, digits and any of ' .,+=()-_', and that do not begin "
            f"with {FULL!r} or {PILOT!r}, but got {label!r}."
        )


def _full_path(class_path: str) -> str:
    """Return the path of a class of ours that is given by its name."""
    if "." in class_path:
        return class_path
    return f"lightning_prune.{'' if hasattr(lightning_prune, class_path) else 'scoring.'}{class_path}"


def class_of(class_path: str, label: str) -> type[PruningCallback]:
    """Return the class of a method.

    Raises:
        RefusedError: If there is none.
    """
    method, reason = _find(_full_path(class_path))
    if method is None:
        raise RefusedError(
            f"Expected the class of {label!r} to be a `PruningCallback`, but got {class_path!r}{reason}."
        )
    return method


def _find(class_path: str) -> tuple[type[PruningCallback] | None, str]:
    """Return the method of an import path, if any, and what to add to a message if it could not be imported."""
    try:
        found = pkgutil.resolve_name(class_path)
    except (ImportError, AttributeError, ValueError) as error:
        return None, f": {str(error).rstrip('.')}"
    return (found if _is_method(found) else None), ""


def _is_method(thing: Any) -> TypeGuard[type[PruningCallback]]:
    return isinstance(thing, type) and issubclass(thing, PruningCallback)
