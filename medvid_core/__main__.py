"""``python -m medvid_core``: the same as ``medvid-run``, so that ``torchrun -m medvid_core`` works."""

from medvid_core.cli.main import main

if __name__ == "__main__":
    main()
