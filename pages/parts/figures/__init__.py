"""Pictures as pure functions: recorded numbers in, a description of a figure out. No Streamlit here."""
