"""Lightning's way in: callbacks, the mixin, and the one file that touches private API."""
