"""The papers' experiments in small: each one command, results in docs/experiments.md."""
