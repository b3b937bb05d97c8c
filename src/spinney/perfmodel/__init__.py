"""How long a step of a model and a transfer of its KV take, from measured or computed profiles."""
