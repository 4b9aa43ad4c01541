"""scikit-learn's digits: 1,797 real scans of handwritten digits, 8x8 pixels, that need no download."""
