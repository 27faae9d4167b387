def targets(seeds): return {}
