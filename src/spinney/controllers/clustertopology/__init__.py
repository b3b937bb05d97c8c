"""ClusterTopologyBindings: whether schedulers see the levels that sets speak of."""
