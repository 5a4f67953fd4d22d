"""Tasks: datasets read, split, shown, tokenised and put into batches."""
