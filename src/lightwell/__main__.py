"""`python -m lightwell` is `lightwell`."""

from lightwell.cli.main import main

main()
