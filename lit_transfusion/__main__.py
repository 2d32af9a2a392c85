"""Run the command line: `python -m lit_transfusion`."""

from lit_transfusion.cli import main

if __name__ == "__main__":
    main()
