"""What mutation testing is made of; `stress.mutate` is its command."""
