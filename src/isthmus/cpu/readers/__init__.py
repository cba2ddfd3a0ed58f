"""Readers of CPU dumps: one module for each format; all of them read hostile input."""
