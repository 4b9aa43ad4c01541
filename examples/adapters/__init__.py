"""How tasks whose losses are not one number per sample give the library what it needs."""
