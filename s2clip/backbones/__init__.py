"""Frozen models behind small adapters."""
