"""`python -m ipyfleet_controller` is `ipcontroller`."""

from .app import main

if __name__ == "__main__":
    main()
