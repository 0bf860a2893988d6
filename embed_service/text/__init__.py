"""From texts to token ids: repair of broken Unicode, prompt policy, tokenisation in threads."""
