"""What every selective method shares: scores, exact selection, the sparse optimizer, the sparse delta file."""
