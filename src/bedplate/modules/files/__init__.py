"""Files: what users upload, where it lies, and what can be read in it."""
