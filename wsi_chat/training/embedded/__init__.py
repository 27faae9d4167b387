"""Recipe of the embedded checkpoint: a small Qwen3-VL trained from scratch on rendered and BCCD fields."""
