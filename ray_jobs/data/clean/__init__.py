"""Personal data and secrets in rows: finding and redacting them."""
