"""Runs and their files: what was asked, where it is, and everything it recorded."""
