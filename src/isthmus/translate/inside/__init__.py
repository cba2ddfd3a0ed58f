"""The placement inside the guest: a module of its kernel around the emulation core."""
