"""`python -m kdbert` and `torchrun … -m kdbert`."""

from kdbert.cli import main

if __name__ == "__main__":
    main()
