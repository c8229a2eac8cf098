"""The command line ``camhook``: a group that registers each command and prints camhook's errors."""

from __future__ import annotations

from typing import Any

import click

from camhook.cli.check import check
from camhook.cli.compare import compare
from camhook.cli.demo import demo
from camhook.cli.explain import explain
from camhook.cli.export import export
from camhook.cli.fit import fit
from camhook.cli.models import describe, models
from camhook.errors import CamhookError

__all__ = ["main"]


class _Group(click.Group):
    """A group that shows camhook's own errors as a message and not as a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CamhookError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="camhook")
def main() -> None:
    """Where in the picture did the score come from? Exact class activation maps for any trained timm classifier."""


for command in (check, compare, demo, describe, explain, export, fit, models):
    main.add_command(command)
