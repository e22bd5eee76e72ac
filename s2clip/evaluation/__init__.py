"""Metrics and runners."""
