"""Interactions, their preparation and their batches."""
