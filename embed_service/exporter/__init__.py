"""The stack's own exporter (`python -m embed_service exporter`): what tailscaled knows and does not export, and who is to be scraped.

    local_api.py    a sidecar's LocalAPI, over its Unix socket
    certificate.py  PEM → expiry
    sidecar.py      both → metrics of one sidecar
    targets.py      settings → what Prometheus is to scrape (HTTP service discovery)
    server.py       the three paths

It runs in the embed image, in a container of its own, without torch and without any secret.
"""
