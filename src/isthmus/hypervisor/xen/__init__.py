"""Xen: a level as xl's cpuid policy."""
