"""Requests and answers as the wire has them: what validates, and what the OpenAPI document shows."""
