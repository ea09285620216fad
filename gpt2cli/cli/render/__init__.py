"""How results look: tables, charts, pictures, pages."""
