"""What happens after `docker compose up -d`: the phase of each container, watching it until ready, estimates, the display."""
