"""Lanes, turns, micro-batches and the link to the engine. Owns the queue; imports no torch."""
