"""Other projects' layouts: HuggingFace folders of GPT-2 and Qwen3, read, written, and proven to give equal logits.

`names.py` is the table of tensor names, `settings.py` that of config.json, both read in both directions.
"""
