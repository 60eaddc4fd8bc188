"""`python -m medssl.cli` is `medssl`."""

from medssl.cli.main import main

if __name__ == "__main__":
    main()
