"""What a run is: a model's sizes (gpt), a run's sections (run), presets, checks that report every problem at once."""
