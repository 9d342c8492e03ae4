"""Numbers and images -> tables, pictures and cards for people."""
