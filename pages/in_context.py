"""In-context learning: a decoder answers with a few solved questions in front, and nothing is trained."""

import streamlit as st

from engine.prompting.tasks import TASKS
from pages.parts import linked, prompting, shell

shell.enter()

st.title("In context", anchor=False)
st.caption(
    "A language model can pick up a task from a few solved examples in its prompt, without changing a weight. Here "
    "the same questions are asked with more and more of them, whatever comes out."
)
titles = {task.id: task.title for task in TASKS.values()}
task = linked.choice("task", titles, next(iter(titles)), key="in-context-task", pills=True) or next(iter(titles))
st.markdown(TASKS[task].description)
model = st.text_input(
    "Decoder", value="nano-llama", key="in-context-model", width=420,
    help="nano-llama, a folder on this machine, or a hub id. Encoders cannot continue a text.",
).strip()  # fmt: skip
measured = st.session_state.setdefault("in-context-measured", {})
with shell.told():
    if st.button(
        "Measure now", type="primary", icon=":material/play_arrow:", key="in-context-measure", disabled=not model
    ):
        with st.spinner("The engine asks the model …"):
            measured[model, task] = prompting.measure(model, task)
    if found := measured.get((model, task)) or prompting.recorded(model, task):
        prompting.show(found)
    else:
        st.caption("Not measured yet.")
