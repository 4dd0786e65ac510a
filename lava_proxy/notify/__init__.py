"""Messages to people and programs outside: what is sent, and what became of sending it. Knows no store and no balance."""
