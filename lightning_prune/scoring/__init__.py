"""Static scores."""
