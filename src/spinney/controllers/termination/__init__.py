"""Gang termination: what lost its minimum for longer than the delay is made anew."""
