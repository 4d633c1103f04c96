"""Other projects' model layouts, as tables of names: HuggingFace's GPT-2 and Qwen3 folders, both ways."""
