"""One engine of several processes: a leader that serves, and members that compute with it."""
