"""What a run will need before it is started: memory of every rank, bytes between ranks, time, and layouts that fit."""
