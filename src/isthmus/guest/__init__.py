"""What can be learnt of a guest from outside: its console, its kernel, what it believed at boot."""
