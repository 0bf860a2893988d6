"""`make demo`: a QMD search over docs/ against the real service; `make serve`: the service alone."""
