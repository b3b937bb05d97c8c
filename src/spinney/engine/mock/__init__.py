"""A worker without weights: modelled time, made-up tokens, everything else real."""
