"""What every command refuses in its options before it does anything: nothing given, given twice, no number."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from rankscope._base.errors import ModelError, UsageError
from rankscope.cli.config_option import words_of_file
from rankscope.cli.option_values import check_text, shown_name, texts

__all__ = ["Command"]


class Command(TyperCommand):
    """A command whose options are each given once, with a value, and a number where one is meant.

    What reads a number into its type names neither the option's value nor what to write, and a path of no letters
    would be the folder that the user happens to be in.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As the parent's, after these checks; whoever asks for the help gets it."""
        values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        if values.get("config") is not None and not values.get("help") and not ctx.resilient_parsing:
            check_once(self.params, order)
            args = self._with_file(args, values)
            values, _, order = self.make_parser(ctx).parse_args(args=list(args))
        if not values.get("help") and not ctx.resilient_parsing:
            given = [p for p in self.params if p.name in values and values[p.name] is not None]
            check_once(given, order)
            wanted = _types(self.callback)
            for param in given:
                if not getattr(param, "is_flag", False):
                    for text in texts(values[str(param.name)]):
                        check_text(shown_name(param), text, wanted.get(str(param.name)))
        return super().parse_args(ctx, args)

    def _with_file(self, args: list[str], values: dict[str, Any]) -> list[str]:
        """The words, and those of ``--config`` that they do not give themselves."""
        check_text("--config", values["config"], None)
        options, arguments = words_of_file(Path(values["config"]), self.params, values, _types(self.callback))
        # what follows a double dash is an argument, whatever it looks like
        if arguments and "--" not in args:
            arguments = ["--", *arguments]
        return [*options, *args, *arguments]

    def invoke(self, ctx: Any) -> Any:
        """As the parent's; what ends the program inside is the model's or the data's own code."""
        try:
            return super().invoke(ctx)
        except SystemExit as error:
            raise ModelError(
                f"the model's or the data's own code ended the program (sys.exit({error})); let it raise an error"
            ) from error


def check_once(params: Sequence[Any], order: Sequence[Any]) -> None:
    """Refuse an option that is given twice, where one of the two would be forgotten without a word."""
    for param in params:
        _check_once(param, sum(one is param for one in order))


def _check_once(param: Any, times: int) -> None:
    # a flag that is given again says the same, unless it has a form that says the opposite
    repeatable = param.param_type_name == "argument" or param.multiple
    if times > 1 and not repeatable and (not param.is_flag or param.secondary_opts):
        name = "/".join([max(param.opts, key=len), *param.secondary_opts])
        raise UsageError(f"{name} is given {times} times; give it once")


@functools.cache
def _types(callback: Any) -> dict[str, type]:
    """The type of each parameter of a command's function, without ``None``, a list around it and its help."""
    return {name: _plain(hint) for name, hint in typing.get_type_hints(callback).items()}


def _plain(hint: Any) -> Any:
    parts = [part for part in typing.get_args(hint) if part is not types.NoneType]
    return _plain(parts[0]) if parts else hint
