"""Documents of a folder: their text as Markdown, cut into chunks by their structure."""
