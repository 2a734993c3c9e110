"""A page in the browser for the person at the machine; gradio is imported inside functions only."""
