"""Programs that the Makefile calls. Standard library only: they run before anything is installed."""
