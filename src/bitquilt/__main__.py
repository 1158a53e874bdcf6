"""``python -m bitquilt`` is the command line."""

from bitquilt.cli.main import main

if __name__ == "__main__":
    main()
