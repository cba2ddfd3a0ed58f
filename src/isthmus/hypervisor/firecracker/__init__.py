"""Firecracker: a level as a custom CPU template."""
