"""Files of rows: stored, uploaded in parts, validated."""
