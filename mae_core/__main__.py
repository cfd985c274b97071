"""``python -m mae_core``: the console command."""

from mae_core.cli import main

if __name__ == "__main__":
    main()
