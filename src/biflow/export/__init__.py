"""The one-pass sampler as one file, and a page that runs it in the browser."""
