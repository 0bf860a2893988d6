"""One archive for a bug report: what is in it, where it comes from, and how it is written without secrets."""
