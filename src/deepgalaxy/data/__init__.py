"""The file of images: its layout, its writer, its reader and its splits."""
