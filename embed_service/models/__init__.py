"""From a repository (hub or folder) to what is served. Reads JSON only; never imports torch."""
