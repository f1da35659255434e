"""The source: its schema, and a generator of advertising data that looks like life. Knows nothing of the pipeline."""
