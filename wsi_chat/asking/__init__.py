"""One question about a picture, a slide or a region: what it asks for, the answer, and its drawing."""
