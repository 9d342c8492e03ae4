"""What every training shares: its loop, losses, random streams, processes and number formats; and sampling."""
