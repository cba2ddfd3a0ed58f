"""Levelling: the CPU model that every host of a pool can honour, and what it costs each host."""
