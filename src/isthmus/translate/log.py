"""The translator's log: lines with their time, in a file whose size has a bound.

A translator serves for months, and what it has to say may depend on the guest.  So the file is
renamed when it is full, and only one old one is kept.
"""

import logging
import os
import sys
import time
from logging.handlers import RotatingFileHandler
from pathlib import Path

NAME = "translator.log"
LIMIT = 256 << 10  # bytes, of the file and of the old one


class _Rotating(RotatingFileHandler):
    """Takes standard output and error along, so that also a crash's last words have a bound."""

    def doRollover(self) -> None:  # noqa: N802  (logging's own name)
        super().doRollover()
        if self.stream is not None:
            sys.stderr.flush()
            for descriptor in (1, 2):
                os.dup2(self.stream.fileno(), descriptor)


def open_log(directory: Path, *, limit: int = LIMIT, standard: bool = True) -> logging.Logger:
    """Open the log of the translator whose files lie in ``directory``.

    :param standard: the process's standard output and error are this file and stay it.
    """
    kind = _Rotating if standard else RotatingFileHandler
    handler = kind(directory / NAME, maxBytes=limit, backupCount=1, encoding="utf-8")
    formatter = logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger = logging.getLogger("isthmus.translate.service")
    logger.handlers[:] = [handler]
    logger.propagate = False
    logger.setLevel(logging.INFO)
    # What asyncio reports of a task that nobody waited for.
    logging.getLogger("asyncio").handlers[:] = [handler]
    return logger
