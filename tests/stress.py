"""`python -m tests.stress`: kill, race, fill, lock and damage real runs (see `tests.studies.stress`)."""

from tests.studies.stress import main

if __name__ == "__main__":
    main()
