"""Augmentation, made fast: line by line in the reading processes, or whole batches on the model's device (method page,
section 2). What is augmented, and how often, is each method's own."""
