"""`isthmus translate`: arm, watch and take away the translator; what it covers; its module."""

import click

from isthmus.cli.translate.arm import attach, detach
from isthmus.cli.translate.coverage import coverage
from isthmus.cli.translate.metrics import metrics
from isthmus.cli.translate.module import module
from isthmus.cli.translate.status import status


@click.group()
def translate() -> None:
    """Execute for guests what their host's CPU lacks: arm it, watch it, take it away.

    `isthmus migrate` arms it by itself where the destination lacks what a guest uses.

    \b
    Examples:
      isthmus translate status
      isthmus translate attach old
      isthmus translate coverage --feature sse4a
      isthmus translate metrics --listen 127.0.0.1:9177
      isthmus translate module export /usr/src/isthmus-translate-0.1.0
    """


for _command in (attach, detach, status, coverage, metrics, module):
    translate.add_command(_command)
