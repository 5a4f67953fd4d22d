"""Where workers run: a backend is four verbs."""
