"""Hyper-V: its processor compatibility, where that can honour a level."""
