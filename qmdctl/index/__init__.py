"""A laptop's local QMD index, read only: stored vectors, the texts that they were made from, cached scores."""
