"""The command line. Nothing heavy is imported before a command needs it, so help and usage errors come at once."""

from rankscope.cli.main import main

__all__ = ["main"]
