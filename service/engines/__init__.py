"""Runtimes that score a graph, one file each."""
