"""PEFTscope in a browser: `streamlit run app.py`. Page setup and navigation; the pages are in pages/."""

import streamlit as st

from engine.settings import ASSETS
from pages.parts import shell

st.set_page_config(page_title="PEFTscope", page_icon=str(ASSETS / "icon.svg"), layout="wide")
st.logo(str(ASSETS / "logo.svg"), size="large")
shell.settle()
page = st.navigation(shell.pages(), position="top")
st.session_state["shell"] = True
page.run()
