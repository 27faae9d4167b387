"""From a slide to its verdict and documents: the cascade of questions, the run folder, the slide score."""
