"""The local web demo (`biflow app`); gradio is imported only inside functions."""
