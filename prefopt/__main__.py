"""`python -m prefopt` is the console script."""

from prefopt.cli import main

if __name__ == "__main__":
    main()
