"""What every training shares: its loop, losses, processes and number formats; and sampling."""
