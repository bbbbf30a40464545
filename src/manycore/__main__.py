"""`python -m manycore`: the command line."""

from manycore._cli import main

if __name__ == "__main__":
    main()
