"""weights_manifest.json: its types, its rules, its reader, and edits that keep its form."""
