"""When and where runs happen: the queue, its supervisor, warm workers and short questions."""
