"""The demo: photographs that come with the install, and label maps drawn for them."""
