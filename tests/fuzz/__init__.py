"""Damaged and hostile input for everything that reads bytes which others wrote: `make fuzz`."""
