"""Fetching what a start needs: images and weights, in parallel, with their bytes."""
