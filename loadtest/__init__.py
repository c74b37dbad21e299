"""Runs the whole house: the demo, benches and load."""
