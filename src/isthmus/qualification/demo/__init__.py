"""The demo: the failure every product has today, and the two cures."""
