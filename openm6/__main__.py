"""Makes `python -m openm6` run the same program as the `openm6` command."""

from openm6.cli import main

if __name__ == "__main__":
    main()
