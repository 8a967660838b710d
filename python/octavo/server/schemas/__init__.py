"""Requests and responses of the HTTP API: what validates is also what documents."""
