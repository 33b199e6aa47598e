"""Room: the demo, its data and its proof of origin."""
