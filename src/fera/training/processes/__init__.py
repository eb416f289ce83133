"""Several processes: DDP, FSDP2 and ZeRO, and what they tell each other."""
