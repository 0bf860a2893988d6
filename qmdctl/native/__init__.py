"""The seed's native setup on this machine: what of it is there, taking it over, and going back."""
