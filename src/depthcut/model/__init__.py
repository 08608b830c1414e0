"""A loaded model as depthcut sees it: where it comes from, what it is made of, and how to run parts of it."""
