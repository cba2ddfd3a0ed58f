"""The filter as a program between two pipes: ``python -m isthmus.translate.xen MAKER REPORT``.

What :mod:`isthmus.cli.xen_filter` is to operators, this is to the engine that moves guests.  MAKER
is CPUID's vendor of the destination, empty to rewrite nothing.
"""

import sys
from pathlib import Path

from isthmus.errors import IsthmusError
from isthmus.translate.xen.knowledge import rules
from isthmus.translate.xen.report import Report
from isthmus.translate.xen.rules import chosen
from isthmus.translate.xen.transport import run


def main() -> int:
    """Filter the standard input to the standard output; the exit status is 1 if it is refused."""
    maker, path = sys.argv[1:]
    report = Report(Path(path))
    try:
        run((), chosen(rules(), maker), report, to=maker)
    except IsthmusError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        report.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
