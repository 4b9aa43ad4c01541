"""What the site needs beyond its pages: nothing of it is imported by the package."""
