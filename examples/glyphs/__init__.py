"""Procedurally drawn glyphs: as many 32x32 images as wanted, in seconds, the same on every machine."""
