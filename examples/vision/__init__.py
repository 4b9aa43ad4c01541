"""Image recipes of the papers: one module, one file a data set, one yaml a recipe."""
