"""``python -m tempbalance`` is the command line."""

from tempbalance.cli import main

if __name__ == "__main__":
    main()
