"""`python -m cssr.report`."""

from cssr.report.command import main

if __name__ == "__main__":
    main()
