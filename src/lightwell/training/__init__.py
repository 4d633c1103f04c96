"""One training loop (loop), one step (step), and what they are made of: state, optimizer, schedule, guard, pace."""
