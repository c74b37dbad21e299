"""What is known of users. A file's name is the scheme of its URL."""
