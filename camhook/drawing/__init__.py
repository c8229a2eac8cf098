"""Pictures: overlays, montages, charts."""
