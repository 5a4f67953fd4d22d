"""Models: where they are found, what they are made of, how they are loaded."""
