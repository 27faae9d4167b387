"""The page in the browser: the slide, its findings, questions about it and their review. Nothing leaves the machine."""
