"""What to train in the time that there is: measure the machine, look at the text, predict, choose."""
