"""Words, tables and figures, made of arrays and facts. Imports no room: it stands below all of them."""
