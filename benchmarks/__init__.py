"""How fast the service is, beside its peers on the same work. `make bench`; see README.md here."""
