"""Where Isthmus keeps things on this machine.

=========  =====================  =========================================  ======================
what       override               default                                    holds
=========  =====================  =========================================  ======================
state      ``ISTHMUS_STATE``      ``$XDG_STATE_HOME/isthmus``                guests, records
run        ``ISTHMUS_RUN``        ``$XDG_RUNTIME_DIR/isthmus``, else         sockets, consoles
                                  ``/tmp/isthmus-UID``
cache      ``ISTHMUS_CACHE``      ``$XDG_CACHE_HOME/isthmus``                kernels, guest images
=========  =====================  =========================================  ======================
"""

import os
import tempfile
from pathlib import Path

from isthmus.errors import EnvironmentLackError


def state_folder() -> Path:
    """The folder of guests and migration records; survives a reboot."""
    return _chosen("ISTHMUS_STATE", "XDG_STATE_HOME", ".local/state")


def cache_folder() -> Path:
    """The folder of what can be made again: kernels and guest images."""
    return _chosen("ISTHMUS_CACHE", "XDG_CACHE_HOME", ".cache")


def run_folder() -> Path:
    """The folder of sockets and consoles; short, since a UNIX socket's path is limited."""
    fallback = Path(tempfile.gettempdir()) / f"isthmus-{os.geteuid()}"
    if override := os.environ.get("ISTHMUS_RUN"):
        return Path(override).absolute()
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base).absolute() / "isthmus" if base else fallback


def _chosen(override: str, base: str, default: str) -> Path:
    """The folder that ``override`` names, or one in ``base``, or in the home folder.

    :raises EnvironmentLackError: neither is set and there is no home, as in some containers.
    """
    if chosen := os.environ.get(override):
        return Path(chosen).absolute()
    if chosen := os.environ.get(base):
        return Path(chosen).absolute() / "isthmus"
    try:
        return Path.home().absolute() / default / "isthmus"
    except RuntimeError as error:
        raise EnvironmentLackError(
            "this user has no home folder", remedy=f"set HOME, or {override} to a folder"
        ) from error
