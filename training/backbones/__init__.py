"""Feature interactions, one file each."""
