"""Translation: doing an instruction's work for a CPU that lacks it."""
