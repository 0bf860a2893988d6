"""What runs on a laptop: finding the two names, proving the way to them, each client's configuration. Needs no project and no engine."""
