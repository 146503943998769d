"""Run the command line as ``python -m tempbalance``."""

from tempbalance.cli import main

if __name__ == "__main__":
    main()
