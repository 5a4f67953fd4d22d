"""In-context learning: a decoder answers questions with a few solved ones in front, and nothing is trained."""
