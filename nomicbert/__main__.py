"""Run the command line as `python -m nomicbert`; the same as the `nomicbert` script."""

from nomicbert.cli import main

if __name__ == "__main__":
    main()
