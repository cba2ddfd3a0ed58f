"""Preflight, prepare, move, verify, commit or roll back; the record that survives a crash."""
