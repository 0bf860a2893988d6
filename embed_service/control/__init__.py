"""Pausing, resuming and switching the models of a running service, over a Unix socket that only its own user can open."""
