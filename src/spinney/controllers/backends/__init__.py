"""One gang, as each scheduler wants to be told of it."""
