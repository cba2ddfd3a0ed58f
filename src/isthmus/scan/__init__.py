"""Find and explain instructions that only some CPUs execute."""
