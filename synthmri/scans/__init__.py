"""Files of scans -> 8-bit slices: whose they are, what they are, and which split they belong to."""
