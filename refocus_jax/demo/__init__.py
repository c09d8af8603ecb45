"""The page of `--mode=demo`. All that its controls do are pure functions; only `page.py` and `parts.py` know gradio."""
