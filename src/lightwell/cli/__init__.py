"""The command `lightwell`: one file per command, imported when it is called. Only this room writes to the screen."""
