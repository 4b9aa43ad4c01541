"""Pruning methods: one file each, the pure rule on top, the thin callback under it."""
