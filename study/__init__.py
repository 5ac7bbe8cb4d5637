"""The study site: both implementations side by side, generated from the source code and from measurements."""
