"""The models of a stack: what is served, what lies in the cache, what fits, and changing one for another."""
