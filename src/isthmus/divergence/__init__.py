"""The catalogue of divergences and the rules engine: two CPUs + guest evidence -> findings."""
