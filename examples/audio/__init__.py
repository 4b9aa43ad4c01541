"""A classifier of sounds."""
