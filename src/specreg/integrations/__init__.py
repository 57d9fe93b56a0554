"""Plug-ins for other people's trainers; each submodule needs the package that it is named after."""
