"""A text classifier on a local csv or tsv file."""
