"""Published methods that do more than the fields of `s2clip.methods.Method` can say; how to write one: `extension`."""
