"""A page that samples in the browser: the exported model, the page's own files, and the runtime that runs it."""
