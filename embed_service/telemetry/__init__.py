"""What the service tells of itself: metrics (named here once) and logs."""
