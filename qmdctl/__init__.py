"""The command line of the stack: `docker compose` with checks before, the truth during, and real requests after a start."""

__version__ = "0.1.0"
