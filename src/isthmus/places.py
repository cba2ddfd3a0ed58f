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


def state_folder() -> Path:
    """The folder of guests and migration records; survives a reboot."""
    return _chosen("ISTHMUS_STATE", "XDG_STATE_HOME", Path.home() / ".local/state")


def cache_folder() -> Path:
    """The folder of what can be made again: kernels and guest images."""
    return _chosen("ISTHMUS_CACHE", "XDG_CACHE_HOME", Path.home() / ".cache")


def run_folder() -> Path:
    """The folder of sockets and consoles; short, since a UNIX socket's path is limited."""
    fallback = Path(tempfile.gettempdir()) / f"isthmus-{os.geteuid()}"
    if override := os.environ.get("ISTHMUS_RUN"):
        return Path(override).absolute()
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base).absolute() / "isthmus" if base else fallback


def _chosen(override: str, base: str, default: Path) -> Path:
    if chosen := os.environ.get(override):
        return Path(chosen).absolute()
    return Path(os.environ.get(base) or default).absolute() / "isthmus"
