"""One file per group of paths, and what all of them share: bodies, errors, keys, the serialiser."""
