"""`python -m deepgalaxy`, also under torchrun."""

from .cli import main

main()
