"""What a run left, as a repository on the Hub: card, snippet, upload."""
