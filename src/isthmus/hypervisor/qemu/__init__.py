"""QEMU driven directly: its binary, CPU models, processes, QMP monitor and precopy stream."""
